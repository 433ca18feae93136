//! What is in force and what is wrong with the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use trysail_model::{ObjectRef, Rejection};

/// Something odd about an object that was taken, such as an unknown field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// File path, relative to the folder.
    pub origin: String,
    /// Index of the document within its file, from 1.
    pub document: usize,
    /// The object.
    pub object: Option<ObjectRef>,
    /// JSON path of the field.
    pub field: String,
    /// What is odd.
    pub reason: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (document {})", self.origin, self.document)?;
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// The state of a source at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Number of objects in force, by kind.
    pub kinds: BTreeMap<String, usize>,
    /// Documents that were refused, sorted by file and document.
    pub rejections: Vec<Rejection>,
    /// Oddities of objects that were taken.
    pub warnings: Vec<Warning>,
    /// `apiVersion/kind` of skipped documents.
    pub unknown_kinds: BTreeSet<String>,
    /// Known kinds that no stage reads, with the number of their objects.
    pub unread_kinds: BTreeMap<String, usize>,
    /// Why the folder cannot be read at the moment, when so.
    pub unreadable: Option<String>,
    /// Why changes are looked for instead of being announced, when so.
    pub watch_error: Option<String>,
}
