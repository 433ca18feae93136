//! The rules of every message, read from the descriptors' options once.

use std::collections::HashMap;
use std::sync::OnceLock;

use prost_reflect::{DynamicMessage, ExtensionDescriptor, FieldDescriptor, MessageDescriptor, OneofDescriptor};
use regex::Regex;
use trysail_proto::descriptors;
use trysail_proto::prost_types::Duration;
use trysail_proto::validate::field_rules::Type;
use trysail_proto::validate::string_rules::WellKnown;
use trysail_proto::validate::{self, FieldRules, KnownRegex};

/// The rules of the twelve kinds of numbers have the same fields, but no type in common.
macro_rules! range {
    ($rules:expr, $convert:expr) => {{
        let rules = $rules;
        Range {
            equal: rules.r#const.map($convert),
            lt: rules.lt.map($convert),
            lte: rules.lte.map($convert),
            gt: rules.gt.map($convert),
            gte: rules.gte.map($convert),
            ignore_empty: rules.ignore_empty(),
            one_of: rules.r#in.into_iter().map($convert).collect(),
            none_of: rules.not_in.into_iter().map($convert).collect(),
        }
    }};
}

/// What to check of one message.
#[derive(Default)]
pub(super) struct MessagePlan {
    /// The file asks for no validation of this message, nor of what it holds.
    pub(super) is_disabled: bool,
    pub(super) fields: Vec<FieldPlan>,
    pub(super) required_oneofs: Vec<OneofDescriptor>,
    /// Numbers of fields whose content is not judged.
    pub(super) skipped_fields: Vec<u32>,
}

/// What to check of one field.
pub(super) struct FieldPlan {
    pub(super) field: FieldDescriptor,
    pub(super) rules: Rules,
}

/// What to check of one value, of a field or within a list or map.
pub(super) struct Rules {
    pub(super) is_required: bool,
    pub(super) check: Check,
}

pub(super) enum Check {
    Nothing,
    Integer(Range<i128>),
    Float(Range<f64>),
    Bool(bool),
    Text(Box<TextRules>),
    Bytes(validate::BytesRules),
    Enum(validate::EnumRules),
    List {
        rules: Box<validate::RepeatedRules>,
        items: Option<Box<Rules>>,
    },
    Map {
        rules: Box<validate::MapRules>,
        keys: Option<Box<Rules>>,
        values: Option<Box<Rules>>,
    },
    Any(validate::AnyRules),
    /// In nanoseconds.
    Duration(Range<i128>),
}

/// Bounds of a number.
#[derive(Default)]
pub(super) struct Range<T> {
    pub(super) equal: Option<T>,
    pub(super) lt: Option<T>,
    pub(super) lte: Option<T>,
    pub(super) gt: Option<T>,
    pub(super) gte: Option<T>,
    pub(super) one_of: Vec<T>,
    pub(super) none_of: Vec<T>,
    pub(super) ignore_empty: bool,
}

pub(super) struct TextRules {
    pub(super) rules: validate::StringRules,
    pub(super) pattern: Option<Regex>,
    /// `well_known_regex`.
    pub(super) header: Option<Header>,
}

/// Which characters an HTTP header may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    StrictName,
    StrictValue,
    /// Name or value: anything that cannot end the header.
    Loose,
}

/// The plan of a message, or `None` when nothing is asked of it.
pub(super) fn of(full_name: &str) -> Option<&'static MessagePlan> {
    // All at once: some 1,600 messages take a few milliseconds, and reading needs no lock afterwards.
    static PLANS: OnceLock<HashMap<String, MessagePlan>> = OnceLock::new();
    PLANS.get_or_init(|| read_all().0).get(full_name)
}

/// Every plan, and the rules that are not understood. A test sees to it that there are none.
pub(super) fn read_all() -> (HashMap<String, MessagePlan>, Vec<String>) {
    let extension = |name: &str| {
        descriptors::pool().get_extension_by_name(name).expect("validate.proto is part of the descriptor set")
    };
    let mut reader = Reader {
        disabled: extension("validate.disabled"),
        ignored: extension("validate.ignored"),
        required: extension("validate.required"),
        rules: extension("validate.rules"),
        not_understood: Vec::new(),
    };
    let mut plans = HashMap::new();
    for message in descriptors::pool().all_messages() {
        if let Some(plan) = reader.message(&message) {
            plans.insert(message.full_name().to_owned(), plan);
        }
    }
    (plans, reader.not_understood)
}

struct Reader {
    disabled: ExtensionDescriptor,
    ignored: ExtensionDescriptor,
    required: ExtensionDescriptor,
    rules: ExtensionDescriptor,
    not_understood: Vec<String>,
}

impl Reader {
    fn message(&mut self, message: &MessageDescriptor) -> Option<MessagePlan> {
        let options = message.options();
        let mut plan = MessagePlan {
            is_disabled: is_true(&options, &self.disabled) || is_true(&options, &self.ignored),
            ..Default::default()
        };
        for oneof in message.oneofs() {
            if is_true(&oneof.options(), &self.required) {
                plan.required_oneofs.push(oneof);
            }
        }
        for field in message.fields() {
            let options = field.options();
            if !options.has_extension(&self.rules) {
                continue;
            }
            let value = options.get_extension(&self.rules);
            let Some(rules) = value.as_message().and_then(|rules| rules.transcode_to::<FieldRules>().ok()) else {
                self.not_understood.push(field.full_name().to_owned());
                continue;
            };
            if rules.message.is_some_and(|rules| rules.skip()) {
                plan.skipped_fields.push(field.number());
            }
            let rules = self.rules(field.full_name(), rules);
            if rules.is_required || !matches!(rules.check, Check::Nothing) {
                plan.fields.push(FieldPlan { field, rules });
            }
        }
        let is_empty = !plan.is_disabled
            && plan.fields.is_empty()
            && plan.required_oneofs.is_empty()
            && plan.skipped_fields.is_empty();
        (!is_empty).then_some(plan)
    }

    fn rules(&mut self, field_name: &str, rules: FieldRules) -> Rules {
        let mut is_required = rules.message.is_some_and(|rules| rules.required());
        let check = match rules.r#type {
            None => Check::Nothing,
            Some(Type::Float(rules)) => Check::Float(range!(rules, f64::from)),
            Some(Type::Double(rules)) => Check::Float(range!(rules, f64::from)),
            Some(Type::Int32(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Int64(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Uint32(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Uint64(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Sint32(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Sint64(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Fixed32(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Fixed64(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Sfixed32(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Sfixed64(rules)) => Check::Integer(range!(rules, i128::from)),
            Some(Type::Bool(rules)) => rules.r#const.map_or(Check::Nothing, Check::Bool),
            Some(Type::String(rules)) => self.text(field_name, rules),
            Some(Type::Bytes(rules)) => {
                if rules.pattern.is_some() || rules.well_known.is_some() {
                    self.not_understood.push(field_name.to_owned());
                }
                Check::Bytes(rules)
            }
            Some(Type::Enum(rules)) => Check::Enum(rules),
            Some(Type::Repeated(mut rules)) => {
                let items = rules.items.take().map(|items| Box::new(self.rules(field_name, *items)));
                Check::List { rules, items }
            }
            Some(Type::Map(mut rules)) => {
                let keys = rules.keys.take().map(|keys| Box::new(self.rules(field_name, *keys)));
                let values = rules.values.take().map(|values| Box::new(self.rules(field_name, *values)));
                Check::Map { rules, keys, values }
            }
            Some(Type::Any(rules)) => {
                is_required |= rules.required();
                Check::Any(rules)
            }
            Some(Type::Duration(rules)) => {
                is_required |= rules.required();
                Check::Duration(Range {
                    equal: rules.r#const.map(nanos),
                    lt: rules.lt.map(nanos),
                    lte: rules.lte.map(nanos),
                    gt: rules.gt.map(nanos),
                    gte: rules.gte.map(nanos),
                    one_of: rules.r#in.into_iter().map(nanos).collect(),
                    none_of: rules.not_in.into_iter().map(nanos).collect(),
                    ignore_empty: false,
                })
            }
            Some(Type::Timestamp(_)) => {
                self.not_understood.push(field_name.to_owned());
                Check::Nothing
            }
        };
        Rules { is_required, check }
    }

    fn text(&mut self, field_name: &str, rules: validate::StringRules) -> Check {
        let pattern = rules.pattern.as_deref().map(Regex::new);
        if !matches!(pattern, None | Some(Ok(_))) {
            self.not_understood.push(field_name.to_owned());
        }
        let header = match rules.well_known {
            None => None,
            Some(WellKnown::WellKnownRegex(regex)) if !rules.strict() => {
                (regex != KnownRegex::Unknown as i32).then_some(Header::Loose)
            }
            Some(WellKnown::WellKnownRegex(regex)) => match KnownRegex::try_from(regex) {
                Ok(KnownRegex::HttpHeaderName) => Some(Header::StrictName),
                Ok(KnownRegex::HttpHeaderValue) => Some(Header::StrictValue),
                _ => None,
            },
            Some(_) => {
                self.not_understood.push(field_name.to_owned());
                None
            }
        };
        Check::Text(Box::new(TextRules { pattern: pattern.and_then(Result::ok), header, rules }))
    }
}

/// Seconds and nanoseconds of a duration as one number.
pub(super) fn nanos(duration: Duration) -> i128 {
    i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos)
}

fn is_true(options: &DynamicMessage, extension: &ExtensionDescriptor) -> bool {
    options.has_extension(extension) && options.get_extension(extension).as_bool() == Some(true)
}
