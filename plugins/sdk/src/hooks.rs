//! What a plugin gets and returns: the fragment it is asked about, and the edits it wants.

use crate::{Ctx, Diagnostic, Failure, Severity};

/// What a fragment is about. Fields that a hook has no use for are empty or 0. See `target` in `wit/`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Target {
    /// `inbound`, `outbound` or `gateway`.
    pub direction: String,
    /// Key of the service, `namespace/host`.
    pub service: String,
    /// Port of the service or listener.
    pub port: u32,
    /// Name of the cluster, listener, route configuration or virtual host, or `namespace/name` of the VirtualService.
    pub name: String,
    /// More of it, by name: see `target` in `wit/`.
    pub attributes: Vec<(String, String)>,
}

impl Target {
    /// The namespace of the service; `None` without a service.
    pub fn namespace(&self) -> Option<&str> {
        Some(self.service.split_once('/')?.0)
    }

    /// An attribute; empty when it has none of that name.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// The same with one attribute more.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Target {
        self.attributes.push((name.to_owned(), value.into()));
        self
    }
}

/// Does a text fit a pattern? `*` at its beginning or end stands for anything.
pub fn fits(pattern: &str, text: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(rest), Some(_)) => text.contains(rest.trim_end_matches('*')),
        (Some(end), None) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => pattern == text,
    }
}

/// Where an element goes into a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// Before all others.
    First,
    /// After all others.
    Last,
    /// Before the element of this `name`.
    Before(String),
    /// After the element of this `name`.
    After(String),
}

/// One change of the fragment. `item` is the key of an item, or empty for all; paths and values are as in `wit/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The field has this value.
    Set {
        /// Key of the item.
        item: String,
        /// Path of the field.
        path: String,
        /// Its value as JSON.
        value: String,
    },
    /// The field is merged with this value.
    Merge {
        /// Key of the item.
        item: String,
        /// Path of the field.
        path: String,
        /// The value as JSON.
        value: String,
    },
    /// A list has this element as well.
    Insert {
        /// Key of the item.
        item: String,
        /// Path of the list.
        path: String,
        /// Where the element goes.
        at: Position,
        /// The element as JSON.
        value: String,
    },
    /// The field or element is gone.
    Remove {
        /// Key of the item.
        item: String,
        /// Path of the field.
        path: String,
    },
    /// A JSON Patch.
    Patch {
        /// Key of the item.
        item: String,
        /// The operations, a JSON array.
        operations: String,
    },
    /// This message takes the place of the item of its key, or comes last.
    Put {
        /// Key of the item.
        key: String,
        /// The encoded message.
        message: Vec<u8>,
    },
    /// The same, as JSON.
    PutJson {
        /// Key of the item.
        key: String,
        /// The message as JSON.
        message: String,
    },
    /// The item of this key is gone.
    Drop(String),
}

/// What a plugin wants done: edits in order, all or none, and what people should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The edits; none leaves the fragment as it is.
    pub edits: Vec<Edit>,
    /// Diagnostics.
    pub diagnostics: Vec<Diagnostic>,
}

impl Edits {
    /// Leaves the fragment as it is.
    pub fn none() -> Self {
        Self::default()
    }

    /// Sets a field of all items.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<serde_json::Value>) -> Self {
        let (item, path, value) = (String::new(), path.to_owned(), value.into().to_string());
        self.edits.push(Edit::Set { item, path, value });
        self
    }

    /// Merges a value into a field of all items.
    #[must_use]
    pub fn merge(mut self, path: &str, value: impl Into<serde_json::Value>) -> Self {
        let (item, path, value) = (String::new(), path.to_owned(), value.into().to_string());
        self.edits.push(Edit::Merge { item, path, value });
        self
    }

    /// Inserts an element into a list of all items.
    #[must_use]
    pub fn insert(mut self, path: &str, at: Position, value: impl Into<serde_json::Value>) -> Self {
        let (item, path, value) = (String::new(), path.to_owned(), value.into().to_string());
        self.edits.push(Edit::Insert { item, path, at, value });
        self
    }

    /// Removes a field or element of all items.
    #[must_use]
    pub fn remove(mut self, path: &str) -> Self {
        self.edits.push(Edit::Remove { item: String::new(), path: path.to_owned() });
        self
    }

    /// Adds an item, or puts it in the place of that of its key.
    #[must_use]
    pub fn put(mut self, key: &str, message: &impl prost::Message) -> Self {
        self.edits.push(Edit::Put { key: key.to_owned(), message: message.encode_to_vec() });
        self
    }

    /// Adds an item given as JSON, or puts it in the place of that of its key.
    #[must_use]
    pub fn put_json(mut self, key: &str, message: impl Into<serde_json::Value>) -> Self {
        self.edits.push(Edit::PutJson { key: key.to_owned(), message: message.into().to_string() });
        self
    }

    /// Adds a diagnostic.
    #[must_use]
    pub fn diagnose(mut self, severity: Severity, object: &str, field: &str, message: impl Into<String>) -> Self {
        let (object, field, message) = (object.to_owned(), field.to_owned(), message.into());
        self.diagnostics.push(Diagnostic { severity, object, field, message, code: String::new() });
        self
    }
}

/// The fragment that a plugin is asked about.
pub trait Fragment {
    /// Its items: key and encoded message.
    fn items(&self) -> Vec<(String, Vec<u8>)>;
    /// The same as JSON texts.
    fn items_json(&self) -> Vec<(String, String)>;
}

impl dyn Fragment + '_ {
    /// The items as JSON values.
    ///
    /// # Errors
    /// When the host hands out something that is no JSON.
    pub fn values(&self) -> Result<Vec<(String, serde_json::Value)>, Failure> {
        let parse = |(key, text): (String, String)| match serde_json::from_str(&text) {
            Ok(value) => Ok((key, value)),
            Err(error) => Err(Failure::BadAnswer(format!("item {key:?}: {error}"))),
        };
        self.items_json().into_iter().map(parse).collect()
    }
}

/// A plugin's function at one hook point.
pub type EditFn = fn(&Ctx<'_>, &Target, &dyn Fragment) -> Result<Edits, Failure>;
