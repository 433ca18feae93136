//! Schemas as data.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::cel::{Failure, Program};

/// A file of `schemas/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    #[allow(dead_code)]
    // Named for who reads the file; the table in `embedded` is what lookups use.
    pub(super) group: String,
    #[allow(dead_code)] // As `group`.
    pub(super) kind: String,
    #[allow(dead_code)] // As `group`.
    pub(super) plural: String,
    #[allow(dead_code)] // As `group`.
    pub(super) scope: String,
    pub(super) versions: Vec<Version>,
    pub(super) schemas: Vec<Schema>,
}

/// A version and which of the schemas is its.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) served: bool,
    #[allow(dead_code)] // Tells which version an API server stores; nothing is stored here.
    pub(super) storage: bool,
    pub(super) schema: usize,
}

impl Definition {
    pub(super) fn schema(&self, version: &str) -> Option<&Schema> {
        let version = self.versions.iter().find(|known| known.name == version && known.served)?;
        self.schemas.get(version.schema)
    }
}

/// A structural schema: the keywords that the CRDs use.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Schema {
    #[serde(rename = "type")]
    pub(super) kind: Option<Type>,
    pub(super) format: Option<String>,
    pub(super) properties: BTreeMap<String, Schema>,
    pub(super) additional_properties: Option<Additional>,
    pub(super) items: Option<Box<Schema>>,
    pub(super) required: Vec<String>,
    #[serde(rename = "enum")]
    pub(super) allowed: Vec<Value>,
    pub(super) pattern: Option<Pattern>,
    pub(super) minimum: Option<f64>,
    pub(super) maximum: Option<f64>,
    pub(super) min_length: Option<usize>,
    pub(super) max_length: Option<usize>,
    pub(super) min_items: Option<usize>,
    pub(super) max_items: Option<usize>,
    pub(super) min_properties: Option<usize>,
    pub(super) max_properties: Option<usize>,
    pub(super) nullable: bool,
    #[serde(rename = "default")]
    pub(super) default: Option<Value>,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Box<Schema>>,
    #[serde(rename = "x-kubernetes-int-or-string")]
    pub(super) int_or_string: bool,
    #[serde(rename = "x-kubernetes-preserve-unknown-fields")]
    pub(super) preserve: bool,
    #[serde(rename = "x-kubernetes-list-type")]
    pub(super) list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys")]
    pub(super) list_map_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    pub(super) map_type: Option<String>,
    #[serde(rename = "x-kubernetes-validations")]
    pub(super) rules: Vec<Rule>,
}

/// JSON's types, integers apart.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// What `additionalProperties` says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Additional {
    Flag(bool),
    Schema(Box<Schema>),
}

/// A regular expression, compiled at first use.
#[derive(Debug, Deserialize)]
#[serde(from = "String")]
pub(super) struct Pattern {
    pub(super) text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Pattern { text, compiled: OnceLock::new() }
    }
}

impl Pattern {
    /// Unset when the expression is beyond the library, which then refuses nothing.
    pub(super) fn regex(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| Regex::new(&self.text).ok()).as_ref()
    }
}

/// A CEL rule, parsed at first use.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) rule: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(skip)]
    parsed: OnceLock<Result<Program, Failure>>,
}

impl Rule {
    pub(super) fn program(&self) -> Result<&Program, Failure> {
        self.parsed.get_or_init(|| Program::parse(&self.rule)).as_ref().map_err(Clone::clone)
    }
}
