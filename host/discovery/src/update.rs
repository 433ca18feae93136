//! What a source tells its owner, whatever kind of source it is.

use std::sync::Arc;

use trysail_model::{Object, ObjectRef, Rejection};

use crate::{Change, Settings, Status};

/// What happened in a source since it was last heard of, all from one moment.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// True for the first one, which holds everything that was there at the start.
    pub initial: bool,
    /// Objects that were not there.
    pub added: Vec<Arc<Object>>,
    /// Objects that differ, as they are now.
    pub updated: Vec<Arc<Object>>,
    /// Objects that are gone.
    pub deleted: Vec<ObjectRef>,
    /// True when mesh configuration, networks or the like differ.
    pub settings_moved: bool,
    /// Mesh configuration and the like, as they are now.
    pub settings: Settings,
    /// Everything in force and everything wrong, as it is now.
    pub status: Arc<Status>,
    /// Rejections that were not there before: what to log.
    pub reported: Vec<Rejection>,
    /// Rejections that are not there any more.
    pub resolved: Vec<Rejection>,
}

impl From<Change> for Update {
    fn from(change: Change) -> Update {
        let Change { initial, changes, settings, status, reported, resolved } = change;
        Update {
            initial,
            added: changes.added,
            updated: changes.updated.into_iter().map(|updated| updated.new).collect(),
            deleted: changes.deleted.iter().map(|object| object.reference.clone()).collect(),
            settings_moved: changes.settings,
            settings,
            status,
            reported,
            resolved,
        }
    }
}
