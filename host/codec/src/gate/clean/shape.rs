//! What a pass over bytes has to know of each message, read from the descriptors once.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

use prost_reflect::prost::encoding::{WireType, decode_varint};
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use trysail_proto::descriptors;

use super::super::plan::{self, Check, MessagePlan, Rules};
use super::super::{Target, check, filters};

/// A message.
pub(super) struct Shape {
    /// By number.
    pub(super) fields: Vec<Field>,
    /// Index in `fields` by number, for small numbers; 255 is none.
    small: Vec<u8>,
    /// Members of oneofs that must be set, as bits of indexes.
    pub(super) required_oneofs: Vec<u128>,
    pub(super) is_disabled: bool,
    /// More fields than bits.
    pub(super) is_large: bool,
    /// What it is read for besides its fields' rules.
    pub(super) reading: Reading,
    /// Fields of which one is there, as bits of indexes; none when nothing is wanted.
    pub(super) one_of: u128,
    /// Filters in order.
    pub(super) chain: Option<Filters>,
}

/// Filters in order, by the numbers of the fields.
pub(super) struct Filters {
    pub(super) filters: u32,
    pub(super) config: u32,
    /// Types of those that end the chain.
    pub(super) ends: &'static [&'static str],
}

/// A field.
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) content: Content,
    pub(super) is_list: bool,
    pub(super) is_map: bool,
    /// Its content is not judged.
    pub(super) is_skipped: bool,
    pub(super) oneof: Option<u8>,
    /// Nothing is wrong when it is not there.
    pub(super) may_be_absent: bool,
    /// How many items it may have, if it has any.
    pub(super) counts: Option<RangeInclusive<u32>>,
    rules: Option<&'static Rules>,
}

/// What a field holds.
pub(super) enum Content {
    Scalar(Scalar),
    /// A message of this name. Entries of maps too.
    Message(Inner),
}

/// A message within another, found when it is first met: messages hold one another in circles.
pub(super) struct Inner {
    name: String,
    shape: OnceLock<Option<&'static Shape>>,
}

impl Inner {
    pub(super) fn shape(&self) -> Option<&'static Shape> {
        *self.shape.get_or_init(|| named(&self.name))
    }
}

/// A value that is no message.
pub(super) enum Scalar {
    Text,
    Bytes,
    Bool,
    Enum(EnumDescriptor),
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Float,
    Double,
}

/// A number.
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

/// What a message is read for besides its fields' rules; numbers are those of fields.
#[derive(PartialEq, Eq)]
pub(super) enum Reading {
    Nothing,
    Any,
    VirtualHost,
    /// Virtual hosts that may not claim the same.
    Routes(u32),
    /// A chain, by the number of its match.
    Chain(u32),
    /// Chains that may not match the same.
    Listener {
        chains: u32,
        r#match: u32,
        matcher: u32,
    },
    Cluster {
        name: u32,
        r#type: u32,
        lb_policy: u32,
        cluster_type: u32,
        eds: u32,
        eds_config: u32,
        service_name: u32,
        ads: u32,
        is_eds: u64,
    },
    /// Names a resource that the stream brings.
    Discovered {
        source: u32,
        ads: u32,
        name: u32,
        field: &'static str,
        target: Target,
    },
    /// Names a filter's configuration.
    Extension {
        discovery: u32,
        source: u32,
        ads: u32,
        no_warming: u32,
        name: u32,
    },
    /// Names a cluster.
    Destination {
        name: u32,
        field: &'static str,
    },
}

const NOTHING: Check = Check::Nothing;

/// The shape of a message; none for unknown ones.
pub(super) fn named(full_name: &str) -> Option<&'static Shape> {
    static SHAPES: OnceLock<HashMap<String, Shape>> = OnceLock::new();
    let all = || {
        let messages = descriptors::pool().all_messages();
        messages.map(|message| (message.full_name().to_owned(), Shape::of(&message))).collect()
    };
    SHAPES.get_or_init(all).get(full_name)
}

impl Shape {
    fn of(message: &MessageDescriptor) -> Shape {
        let plan = plan::of(message.full_name());
        let mut fields: Vec<Field> = message.fields().map(|field| Field::of(&field, plan)).collect();
        fields.sort_by_key(|field| field.number);
        let mut small = vec![u8::MAX; 64];
        for (index, field) in fields.iter().enumerate().take(128) {
            if let Some(slot) = small.get_mut(field.number as usize) {
                *slot = index as u8;
            }
        }
        let bit =
            |number: u32| fields.iter().position(|field| field.number == number).map_or(0, |i| 1_u128 << i.min(127));
        let members = |oneof: &prost_reflect::OneofDescriptor| {
            oneof.fields().map(|field| bit(field.number())).fold(0, |all, one| all | one)
        };
        let oneofs = plan.map(|plan| plan.required_oneofs.as_slice()).unwrap_or_default();
        let required_oneofs = oneofs.iter().map(members).collect();
        Shape {
            required_oneofs,
            small,
            is_disabled: plan.is_some_and(|plan| plan.is_disabled),
            is_large: fields.len() > 128 || message.oneofs().len() > 64,
            reading: reading(message),
            one_of: one_of(message.full_name())
                .iter()
                .filter_map(|name| message.get_field_by_name(name))
                .fold(0, |all, field| all | bit(field.number())),
            chain: chain(message),
            fields,
        }
    }

    /// Index of a field by its number.
    pub(super) fn index(&self, number: u32) -> Option<usize> {
        match self.small.get(number as usize) {
            Some(&u8::MAX) => None,
            Some(&index) => Some(usize::from(index)),
            None => self.fields.binary_search_by_key(&number, |field| field.number).ok(),
        }
    }
}

impl Field {
    fn of(field: &FieldDescriptor, plan: Option<&'static MessagePlan>) -> Field {
        let number = field.number();
        // The file asks for no validation: then nothing is wrong with any field.
        let plan = plan.filter(|plan| !plan.is_disabled);
        let planned = plan.and_then(|plan| plan.fields.iter().find(|planned| planned.field.number() == number));
        let rules = planned.map(|planned| &planned.rules);
        let content = Content::of(field.kind());
        let may_be_absent = match rules {
            None => true,
            Some(rules) if field.supports_presence() => !rules.is_required || field.containing_oneof().is_some(),
            Some(rules) => match (&rules.check, &content) {
                (Check::List { rules, .. }, _) => rules.ignore_empty() || rules.min_items.unwrap_or(0) == 0,
                (Check::Map { rules, .. }, _) => rules.ignore_empty() || rules.min_pairs.unwrap_or(0) == 0,
                (check, Content::Scalar(scalar)) => scalar.default_fits(check),
                (_, Content::Message(_)) => false,
            },
        };
        let up_to = |min: Option<u64>, max: Option<u64>| {
            let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
            (min.is_some() || max.is_some()).then(|| number(min.unwrap_or(0))..=number(max.unwrap_or(u64::MAX)))
        };
        let counts = match rules.map(|rules| &rules.check) {
            // Whether items are equal the long way finds out.
            Some(Check::List { rules, .. }) if rules.unique() => {
                Some(number_of(rules.min_items)..=1.min(number_of(rules.max_items.or(Some(1)))))
            }
            Some(Check::List { rules, .. }) => up_to(rules.min_items, rules.max_items),
            // Equal keys count once: below two that makes no difference.
            Some(Check::Map { rules, .. }) if rules.min_pairs.is_some_and(|min| min > 1) => Some(u32::MAX..=u32::MAX),
            Some(Check::Map { rules, .. }) => up_to(rules.min_pairs, rules.max_pairs),
            _ => None,
        };
        Field {
            number,
            name: field.name().to_owned(),
            content,
            is_list: field.is_list() || field.is_map(),
            is_map: field.is_map(),
            is_skipped: plan.is_some_and(|plan| plan.skipped_fields.contains(&number)),
            oneof: field.containing_oneof().map(|oneof| {
                let oneofs: Vec<_> = field.parent_message().oneofs().collect();
                oneofs.iter().position(|known| *known == oneof).map_or(u8::MAX, |i| i.min(63) as u8).min(63)
            }),
            may_be_absent,
            counts,
            rules,
        }
    }

    /// Rules of the field's value, of a list's items.
    pub(super) fn check(&self) -> &'static Check {
        match self.rules.map(|rules| &rules.check) {
            Some(Check::List { items, .. }) => items.as_ref().map_or(&NOTHING, |items| &items.check),
            Some(Check::Map { .. }) | None => &NOTHING,
            Some(check) => check,
        }
    }

    /// Rules of a map's keys.
    pub(super) fn keys(&self) -> &'static Check {
        match self.rules.map(|rules| &rules.check) {
            Some(Check::Map { keys: Some(keys), .. }) => &keys.check,
            _ => &NOTHING,
        }
    }

    /// Rules of a map's values.
    pub(super) fn values(&self) -> &'static Check {
        match self.rules.map(|rules| &rules.check) {
            Some(Check::Map { values: Some(values), .. }) => &values.check,
            _ => &NOTHING,
        }
    }
}

fn number_of(n: Option<u64>) -> u32 {
    n.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX))
}

impl Content {
    fn of(kind: Kind) -> Content {
        Content::Scalar(match kind {
            Kind::Message(message) => {
                let name = message.full_name().to_owned();
                return Content::Message(Inner { name, shape: OnceLock::new() });
            }
            Kind::Enum(descriptor) => Scalar::Enum(descriptor),
            Kind::String => Scalar::Text,
            Kind::Bytes => Scalar::Bytes,
            Kind::Bool => Scalar::Bool,
            Kind::Int32 => Scalar::Int32,
            Kind::Int64 => Scalar::Int64,
            Kind::Uint32 => Scalar::Uint32,
            Kind::Uint64 => Scalar::Uint64,
            Kind::Sint32 => Scalar::Sint32,
            Kind::Sint64 => Scalar::Sint64,
            Kind::Fixed32 => Scalar::Fixed32,
            Kind::Fixed64 => Scalar::Fixed64,
            Kind::Sfixed32 => Scalar::Sfixed32,
            Kind::Sfixed64 => Scalar::Sfixed64,
            Kind::Float => Scalar::Float,
            Kind::Double => Scalar::Double,
        })
    }
}

impl Scalar {
    /// How it is written.
    pub(super) fn wire(&self) -> WireType {
        match self {
            Scalar::Text | Scalar::Bytes => WireType::LengthDelimited,
            Scalar::Fixed32 | Scalar::Sfixed32 | Scalar::Float => WireType::ThirtyTwoBit,
            Scalar::Fixed64 | Scalar::Sfixed64 | Scalar::Double => WireType::SixtyFourBit,
            _ => WireType::Varint,
        }
    }

    /// Lists of it come as one field.
    pub(super) fn is_packable(&self) -> bool {
        !matches!(self, Scalar::Text | Scalar::Bytes)
    }

    /// Reads a number.
    pub(super) fn number(&self, rest: &mut &[u8]) -> Option<Number> {
        fn fixed<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
            let (bytes, after) = rest.split_first_chunk()?;
            *rest = after;
            Some(*bytes)
        }
        let zigzag = |n: u64| ((n >> 1) as i64) ^ -((n & 1) as i64);
        Some(Number::Whole(match self {
            Scalar::Int32 => i128::from(decode_varint(rest).ok()? as i32),
            Scalar::Int64 => i128::from(decode_varint(rest).ok()? as i64),
            Scalar::Uint32 => i128::from(decode_varint(rest).ok()? as u32),
            Scalar::Uint64 => i128::from(decode_varint(rest).ok()?),
            Scalar::Sint32 => i128::from(zigzag(u64::from(decode_varint(rest).ok()? as u32)) as i32),
            Scalar::Sint64 => i128::from(zigzag(decode_varint(rest).ok()?)),
            Scalar::Fixed32 => i128::from(u32::from_le_bytes(fixed(rest)?)),
            Scalar::Fixed64 => i128::from(u64::from_le_bytes(fixed(rest)?)),
            Scalar::Sfixed32 => i128::from(i32::from_le_bytes(fixed(rest)?)),
            Scalar::Sfixed64 => i128::from(i64::from_le_bytes(fixed(rest)?)),
            Scalar::Float => return Some(Number::Float(f64::from(f32::from_le_bytes(fixed(rest)?)))),
            Scalar::Double => return Some(Number::Float(f64::from_le_bytes(fixed(rest)?))),
            Scalar::Text | Scalar::Bytes | Scalar::Bool | Scalar::Enum(_) => return None,
        }))
    }

    /// Is its default what the rules ask for?
    pub(super) fn default_fits(&self, check: &Check) -> bool {
        let mut findings = Vec::new();
        match (check, self) {
            (Check::Text(rules), Scalar::Text) => check::text("", rules, &mut findings),
            (Check::Bytes(rules), Scalar::Bytes) => check::bytes(&[], rules, &mut findings),
            (Check::Bool(expected), Scalar::Bool) => return !expected,
            (Check::Enum(rules), Scalar::Enum(descriptor)) => {
                check::enum_number(descriptor.default_value().number(), rules, Some(descriptor), &mut findings);
            }
            (Check::Integer(range), _) => check::integer(0, range, &mut findings),
            (Check::Float(range), _) => check::number(0.0, range, "double", f64::to_string, &mut findings),
            _ => {}
        }
        findings.is_empty()
    }
}

/// Fields of a message of which one has to be there.
fn one_of(full_name: &str) -> &'static [&'static str] {
    if full_name == "envoy.config.listener.v3.Listener" {
        return &filters::RECEIVES;
    }
    let found = filters::EXTENSIONS.iter().find(|(name, _)| *name == full_name);
    found.map(|(_, fields)| *fields).unwrap_or_default()
}

/// The filters that a message has in order.
fn chain(message: &MessageDescriptor) -> Option<Filters> {
    let chain = filters::CHAINS.iter().find(|chain| chain.message == message.full_name())?;
    let filters = message.get_field_by_name(chain.filters)?;
    let config = filters.kind().as_message()?.get_field_by_name("typed_config")?.number();
    Some(Filters { filters: filters.number(), config, ends: chain.ends })
}

/// What a message is read for, with the numbers of the fields that it takes.
fn reading(message: &MessageDescriptor) -> Reading {
    const ADS: (&str, &str) = ("envoy.config.core.v3.ConfigSource", "ads");
    let of = |message: &str, field: &str| {
        let field = descriptors::pool().get_message_by_name(message).and_then(|m| m.get_field_by_name(field));
        field.map_or(0, |field| field.number())
    };
    let full_name = message.full_name();
    let own = |field: &str| of(full_name, field);
    let ads = of(ADS.0, ADS.1);
    match full_name {
        "google.protobuf.Any" => Reading::Any,
        "envoy.config.route.v3.VirtualHost" => Reading::VirtualHost,
        "envoy.config.route.v3.RouteConfiguration" => Reading::Routes(own("virtual_hosts")),
        "envoy.config.listener.v3.FilterChain" => Reading::Chain(own("filter_chain_match")),
        "envoy.config.listener.v3.Listener" => Reading::Listener {
            chains: own("filter_chains"),
            r#match: of("envoy.config.listener.v3.FilterChain", "filter_chain_match"),
            matcher: own("filter_chain_matcher"),
        },
        "envoy.config.cluster.v3.Cluster" => Reading::Cluster {
            name: own("name"),
            r#type: own("type"),
            lb_policy: own("lb_policy"),
            cluster_type: own("cluster_type"),
            eds: own("eds_cluster_config"),
            eds_config: of("envoy.config.cluster.v3.Cluster.EdsClusterConfig", "eds_config"),
            service_name: of("envoy.config.cluster.v3.Cluster.EdsClusterConfig", "service_name"),
            ads,
            is_eds: 3,
        },
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds" => Reading::Discovered {
            source: own("config_source"),
            ads,
            name: own("route_config_name"),
            field: "route_config_name",
            target: Target::Routes,
        },
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter"
        | "envoy.config.listener.v3.Filter"
        | "envoy.config.listener.v3.ListenerFilter" => Reading::Extension {
            discovery: own("config_discovery"),
            source: of("envoy.config.core.v3.ExtensionConfigSource", "config_source"),
            ads,
            no_warming: of("envoy.config.core.v3.ExtensionConfigSource", "apply_default_config_without_warming"),
            name: own("name"),
        },
        "envoy.config.route.v3.RouteAction"
        | "envoy.config.route.v3.RouteAction.RequestMirrorPolicy"
        | "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            Reading::Destination { name: own("cluster"), field: "cluster" }
        }
        "envoy.config.route.v3.WeightedCluster.ClusterWeight"
        | "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight" => {
            Reading::Destination { name: own("name"), field: "name" }
        }
        _ => Reading::Nothing,
    }
}
