//! Outputs: items, their parts, calls.

use crate::fields::begin;

/// A reference to a call whose output the host puts in place. See `call-ref` in `wit/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct CallRef {
    /// Name of the stage.
    pub stage: String,
    /// Function of the stage.
    pub function: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Field of the enclosing message that each item fills; 0: the items' bytes are fields of it themselves.
    pub field: u32,
    /// Hook point, or empty.
    pub hook: String,
}

impl CallRef {
    /// A call whose items are spliced or included.
    pub fn new<S: Into<String>>(stage: &str, function: &str, args: impl IntoIterator<Item = S>) -> Self {
        CallRef {
            stage: stage.into(),
            function: function.into(),
            args: args.into_iter().map(Into::into).collect(),
            ..Default::default()
        }
    }

    /// Plugins at `hook` see the callee's output first.
    pub fn hooked(mut self, hook: &str) -> Self {
        self.hook = hook.into();
        self
    }
}

/// Part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Encoded fields.
    Bytes(Vec<u8>),
    /// A length-delimited field begins.
    Open(u32),
    /// The innermost open field ends.
    Close,
    /// Another call's output.
    Call(CallRef),
}

/// A message in parts, built in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The parts so far.
    pub parts: Vec<Part>,
}

impl Message {
    /// The fields of a message that has no holes.
    pub fn of(message: &impl prost::Message) -> Self {
        Message::default().fields(message)
    }

    /// Encoded fields, such as [`Fields`](crate::Fields) makes.
    pub fn encoded(fields: Vec<u8>) -> Self {
        Message { parts: if fields.is_empty() { Vec::new() } else { vec![Part::Bytes(fields)] } }
    }

    /// Appends the fields of `message`. Fields of one number must come in their order; others may come in any, since
    /// Envoy's decoder does not care, but keep ascending numbers so that equal messages have equal bytes.
    pub fn fields(mut self, message: &impl prost::Message) -> Self {
        let len = message.encoded_len();
        if len > 0 {
            let bytes = self.tail();
            bytes.reserve(len);
            message.encode_raw(bytes);
        }
        self
    }

    /// The bytes at the end, for more to follow.
    fn tail(&mut self) -> &mut Vec<u8> {
        if !matches!(self.parts.last(), Some(Part::Bytes(_))) {
            self.parts.push(Part::Bytes(Vec::new()));
        }
        match self.parts.last_mut() {
            Some(Part::Bytes(bytes)) => bytes,
            _ => unreachable!("it was put there above"),
        }
    }

    /// Appends `inner` as the length-delimited field `number`.
    pub fn field(mut self, number: u32, inner: Message) -> Self {
        if !inner.parts.iter().all(|part| matches!(part, Part::Bytes(_))) {
            self.parts.push(Part::Open(number));
            self.parts.extend(inner.parts);
            self.parts.push(Part::Close);
            return self;
        }
        let chunks = || inner.parts.iter().filter_map(|part| if let Part::Bytes(b) = part { Some(b) } else { None });
        let len: usize = chunks().map(Vec::len).sum();
        let bytes = self.tail();
        bytes.reserve(len + 10);
        begin(number, len, bytes);
        chunks().for_each(|chunk| bytes.extend_from_slice(chunk));
        self
    }

    /// Appends a string field.
    pub fn text(mut self, number: u32, text: &str) -> Self {
        let bytes = self.tail();
        begin(number, text.len(), bytes);
        bytes.extend_from_slice(text.as_bytes());
        self
    }

    /// Appends `inner` as a `google.protobuf.Any` in field `number`.
    pub fn any(self, number: u32, type_url: &str, inner: Message) -> Self {
        self.field(number, Message::default().text(1, type_url).field(2, inner))
    }

    /// Appends a hole: each item of the call's output becomes the repeated field `number`.
    pub fn hole(mut self, number: u32, mut call: CallRef) -> Self {
        call.field = number;
        self.parts.push(Part::Call(call));
        self
    }

    /// Appends a hole whose items' bytes are fields of this message.
    pub fn splice(self, call: CallRef) -> Self {
        self.hole(0, call)
    }
}

/// A resource or fragment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// Resource name or unique key.
    pub key: String,
    /// The message.
    pub message: Message,
    /// What it claims among its siblings.
    pub claims: Vec<String>,
    /// What Envoy waits for.
    pub refs: Vec<String>,
}

impl Item {
    /// An item.
    pub fn new(key: impl Into<String>, message: Message) -> Self {
        Item { key: key.into(), message, ..Default::default() }
    }
}

/// One entry of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An item.
    Item(Item),
    /// All entries of another call.
    Include(CallRef),
}

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Works, but hardly as meant.
    Warning,
    /// Something was left out.
    Error,
}

/// Something that the author of an object should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// `VirtualService shop/frontend`.
    pub object: String,
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// The kind of finding, by which such findings are counted; empty for none.
    pub code: String,
}

/// What a call returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Items and inclusions.
    pub entries: Vec<Entry>,
    /// Diagnostics.
    pub diagnostics: Vec<Diagnostic>,
}

impl Output {
    /// No entries.
    pub fn empty() -> Self {
        Self::default()
    }

    /// One item whose message is all that matters: the form of derived facts.
    pub fn value(message: &impl prost::Message) -> Self {
        let mut output = Self::default();
        output.item(Item::new("value", Message::of(message)));
        output
    }

    /// Adds an item.
    pub fn item(&mut self, item: Item) {
        self.entries.push(Entry::Item(item));
    }

    /// Adds an inclusion.
    pub fn include(&mut self, call: CallRef) {
        self.entries.push(Entry::Include(call));
    }

    /// Adds a diagnostic.
    pub fn diagnose(
        &mut self,
        severity: Severity,
        object: impl Into<String>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) {
        let (object, field, message) = (object.into(), field.into(), message.into());
        self.diagnostics.push(Diagnostic { severity, object, field, message, code: String::new() });
    }

    /// Has the diagnostic that was added last counted among its kind.
    pub fn count_as(&mut self, code: &str) {
        if let Some(last) = self.diagnostics.last_mut() {
            last.code = code.to_owned();
        }
    }
}

/// What a plugin did with a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing.
    Unchanged,
    /// These entries take its place.
    Replaced(Output),
    /// It is edited.
    Edited(crate::Edits),
}

/// Why a call has no output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No such function.
    UnknownFunction(String),
    /// Arguments do not fit.
    BadArguments(String),
    /// An answer could not be decoded.
    BadAnswer(String),
    /// The plugin's configuration is not what it takes.
    BadConfiguration(String),
    /// Anything else.
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::UnknownFunction(name) => write!(f, "unknown function {name:?}"),
            Failure::BadArguments(why) => write!(f, "bad arguments: {why}"),
            Failure::BadAnswer(why) => write!(f, "undecodable answer: {why}"),
            Failure::BadConfiguration(why) => write!(f, "configuration: {why}"),
            Failure::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}
