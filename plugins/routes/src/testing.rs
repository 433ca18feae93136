//! A host of made-up answers, and short forms for test data.

use std::collections::BTreeMap;

use trysail_sdk::prost::Message as _;
use trysail_sdk::proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use trysail_sdk::proto::istio::networking::v1alpha3::{StringMatch, string_match::MatchType};
use trysail_sdk::{Ctx, Entry, Host, Level, Message, Output, Part, prost};

use crate::config::HOOK;

/// Answers by query and arguments; all else is none.
#[derive(Default)]
pub struct Fake {
    answers: BTreeMap<(String, Vec<String>), Vec<u8>>,
}

impl Fake {
    /// Adds an answer that is a message.
    pub fn answer(self, query: &str, args: &[&str], message: &impl prost::Message) -> Self {
        self.bytes(query, args, &message.encode_to_vec())
    }

    /// Adds an answer that is text; empty for a predicate that holds.
    pub fn text(self, query: &str, args: &[&str], text: &str) -> Self {
        self.bytes(query, args, text.as_bytes())
    }

    fn bytes(mut self, query: &str, args: &[&str], bytes: &[u8]) -> Self {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        self.answers.insert((query.to_owned(), args), bytes.to_vec());
        self
    }

    /// Calls the stage.
    pub fn run(&self, function: &str, args: &[&str]) -> Output {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        crate::translate(&Ctx::new(self), function, &args).expect("the call succeeds")
    }
}

impl Host for Fake {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        self.answers.get(&(query.to_owned(), args)).cloned()
    }

    fn report(&self, _: Level, _: &str) {}
}

/// The items of an output without holes, decoded.
pub fn decode_items<M: prost::Message + Default>(output: &Output) -> Vec<M> {
    let decode = |entry: &Entry| {
        let Entry::Item(item) = entry else { panic!("an inclusion") };
        let bytes: Vec<u8> = item
            .message
            .parts
            .iter()
            .flat_map(|part| match part {
                Part::Bytes(bytes) => bytes.clone(),
                other => panic!("a hole: {other:?}"),
            })
            .collect();
        M::decode(bytes.as_slice()).expect("a message")
    };
    output.entries.iter().map(decode).collect()
}

/// The parts of the one item, with what makes virtual hosts for plugins put in place, and how many of these there were.
pub fn whole(fake: &Fake, output: &Output) -> (Vec<Part>, usize) {
    let [Entry::Item(item)] = &output.entries[..] else { panic!("one item") };
    let (mut message, mut n_hooked) = (Message::default(), 0);
    for part in &item.message.parts {
        message = match part {
            Part::Call(call) if call.hook == HOOK => {
                n_hooked += 1;
                let args: Vec<&str> = call.args.iter().map(String::as_str).collect();
                let made = fake.run(&call.function, &args);
                let [Entry::Item(item)] = &made.entries[..] else { panic!("one virtual host") };
                assert_eq!(item.key, call.args[0], "the name comes first");
                message.field(call.field, item.message.clone())
            }
            other => Message { parts: [message.parts, vec![other.clone()]].concat() },
        };
    }
    let mut joined: Vec<Part> = Vec::new();
    for part in message.parts {
        match (joined.last_mut(), part) {
            (Some(Part::Bytes(last)), Part::Bytes(more)) => last.extend(more),
            (_, part) => joined.push(part),
        }
    }
    (joined, n_hooked)
}

/// A RouteConfiguration with holes, made readable.
pub struct Outline {
    /// All but the virtual hosts.
    pub configuration: RouteConfiguration,
    /// `name [domains] source of the routes`.
    pub hosts: Vec<String>,
}

/// Reads the one item of `config`.
pub fn outline(output: &Output) -> Outline {
    let [Entry::Item(item)] = output.entries.as_slice() else { panic!("not one item") };
    let mut plain = Vec::new();
    let mut hosts = Vec::new();
    let mut inside: Option<(Vec<u8>, String)> = None;
    for part in &item.message.parts {
        match (part, &mut inside) {
            (Part::Bytes(bytes), None) => plain.extend_from_slice(bytes),
            (Part::Bytes(bytes), Some((host, _))) => host.extend_from_slice(bytes),
            (Part::Open(2), None) => inside = Some((Vec::new(), String::new())),
            (Part::Call(call), Some((_, source))) => {
                let call = format!("{}({})", call.function, call.args.join(", "));
                *source = if source.is_empty() { call } else { format!("{source} {call}") };
            }
            (Part::Close, Some((host, source))) => {
                hosts.push(described(&VirtualHost::decode(host.as_slice()).expect("a virtual host"), source));
                inside = None;
            }
            other => panic!("unexpected part {other:?}"),
        }
    }
    let mut configuration = RouteConfiguration::decode(plain.as_slice()).expect("a configuration");
    hosts.extend(std::mem::take(&mut configuration.virtual_hosts).iter().map(|host| described(host, "inline")));
    Outline { configuration, hosts }
}

fn described(host: &VirtualHost, source: &str) -> String {
    let redirects = if host.require_tls == 0 { "" } else { " redirects" };
    format!("{} [{}] {source}{redirects}", host.name, host.domains.join(" "))
}

fn string_match(match_type: MatchType) -> StringMatch {
    StringMatch { match_type: Some(match_type) }
}

/// Matches this text.
pub fn exact(text: &str) -> StringMatch {
    string_match(MatchType::Exact(text.to_owned()))
}

/// Matches texts that begin so.
pub fn prefix(text: &str) -> StringMatch {
    string_match(MatchType::Prefix(text.to_owned()))
}

/// Matches texts of this form.
pub fn regex(text: &str) -> StringMatch {
    string_match(MatchType::Regex(text.to_owned()))
}
