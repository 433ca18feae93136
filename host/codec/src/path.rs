//! Paths into a message, as people write them: `filter_chains[0].filters[1].typed_config.stat_prefix`.

use std::fmt::Write;

/// One step into a message.
pub(crate) enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl Step<'_> {
    /// Appends the step to what came before it.
    pub(crate) fn push_to(&self, text: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Field(name) if text.is_empty() => write!(text, "{name}"),
            Self::Field(name) => write!(text, ".{name}"),
            Self::Index(index) => write!(text, "[{index}]"),
            Self::Key(key) => write!(text, "[{key:?}]"),
        };
    }
}
