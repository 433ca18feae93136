//! What stands for a plugin whose component is not there.

use trysail_stages::Limits;
use trysail_stages::fault::FaultKind;
use trysail_stages::guest::{Asker, Done, Guest, Job, Unanswered};

/// Fails whatever it is asked, so that a policy of holding holds: a control plane that starts without the registry does not send
/// configuration from which the plugin is missing that was to guard it.
pub(super) struct Absent {
    name: String,
}

impl Absent {
    pub(super) fn new(name: &str) -> Absent {
        Absent { name: name.to_owned() }
    }
}

impl Guest for Absent {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> &str {
        "absent"
    }

    fn run(
        &self,
        _job: &Job,
        asker: Box<dyn Asker>,
        _limits: &Limits,
        _fresh: bool,
    ) -> (Result<Done, Unanswered>, Box<dyn Asker>) {
        let why = "no version of its component is in force, and its failurePolicy is hold";
        (Err(Unanswered::Own(FaultKind::Failed(why.to_owned()))), asker)
    }
}
