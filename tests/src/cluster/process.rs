//! Programs that die with this process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context as _, Result};

/// A running program. Dropping it kills it.
pub(crate) struct Process(Child);

type Job = Box<dyn FnOnce() + Send>;

/// Children are told when the thread that started them ends, which must not be a test's.
fn spawner() -> &'static Mutex<Sender<Job>> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (jobs_tx, jobs_rx) = mpsc::channel::<Job>();
        std::thread::spawn(move || jobs_rx.into_iter().for_each(|job| job()));
        Mutex::new(jobs_tx)
    })
}

impl Process {
    /// Starts a program with its output in a file.
    pub(crate) fn start(program: &Path, flags: Vec<String>, log: PathBuf) -> Result<Process> {
        let out = File::options().create(true).append(true).open(&log).with_context(|| log.display().to_string())?;
        let err = out.try_clone().context("cannot open the log twice")?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(flags);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let (started_tx, started_rx) = mpsc::channel();
        let job: Job = Box::new(move || drop(started_tx.send(command.spawn())));
        let sent = spawner().lock().ok().and_then(|jobs| jobs.send(job).ok());
        sent.context("the thread that starts programs is gone")?;
        let started = started_rx.recv().context("the thread that starts programs is gone")?;
        started.map(Process).with_context(|| format!("cannot start {} (through setpriv)", program.display()))
    }

    /// Has it ended by itself?
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().map_or(true, |status| status.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The end of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
