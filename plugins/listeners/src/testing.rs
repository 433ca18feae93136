//! A host for tests: a map from questions to answers.

use std::collections::BTreeMap;

use trysail_sdk::prost::Message;
use trysail_sdk::{CallRef, Ctx, Entry, Host, Level, Output, Part};

/// Answers by query and arguments; what is not here is "there is none".
#[derive(Default)]
pub struct Answers(BTreeMap<(String, Vec<String>), Vec<u8>>);

impl Answers {
    /// Adds an answer that is a message.
    pub fn message(mut self, query: &str, args: &[&str], answer: &impl Message) -> Self {
        self.0.insert((query.into(), args.iter().map(|a| (*a).into()).collect()), answer.encode_to_vec());
        self
    }

    /// Adds an answer that is text.
    pub fn text(mut self, query: &str, args: &[&str], answer: &str) -> Self {
        self.0.insert((query.into(), args.iter().map(|a| (*a).into()).collect()), answer.as_bytes().to_vec());
        self
    }
}

impl Host for Answers {
    fn ask(&self, query: &'static str, args: &[&str]) -> Option<Vec<u8>> {
        if query == "features" {
            // Feature variables are asked for in groups; each is answered on its own here.
            let values = args
                .iter()
                .map(|name| {
                    let key = ("feature".to_owned(), vec![(*name).to_owned()]);
                    self.0
                        .get(&key)
                        .map(|v| String::from_utf8_lossy(v).into_owned())
                        .unwrap_or_else(|| default(name).into())
                })
                .collect();
            return Some(trysail_sdk::facts::Strings { values }.encode_to_vec());
        }
        if query == "mesh-config" {
            return self.0.get(&("mesh-config".to_owned(), Vec::new())).cloned();
        }
        if matches!(query, "derived" | "derived-exists") && args[0] == "listeners" {
            let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            let ctx = Ctx::new(self);
            let output = crate::translate(&ctx, &args[1], &args[2..]).expect("a call of this stage");
            let bytes: Vec<Vec<u8>> = items(&ctx, &output).into_iter().map(|(_, bytes)| bytes).collect();
            return (!bytes.is_empty()).then(|| bytes.concat());
        }
        let key = (query.to_owned(), args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        self.0.get(&key).cloned()
    }

    fn report(&self, _: Level, _: &str) {}
}

fn default(name: &str) -> &'static str {
    match name {
        "PILOT_ENABLE_METADATA_EXCHANGE"
        | "PILOT_ENABLE_ALPN_FILTER"
        | "PILOT_ENABLE_MONGO_FILTER"
        | "ENABLE_100_CONTINUE_HEADERS"
        | "PILOT_ENABLE_ABSOLUTE_FQDN_VHOST_DOMAIN" => "true",
        "PILOT_GATEWAY_TRANSPORT_SOCKET_CONNECT_TIMEOUT" => "15s",
        "MAX_CONNECTIONS_PER_SOCKET_EVENT_LOOP" => "1",
        "PILOT_TRACE_SAMPLING" => "1",
        "PILOT_ALLOW_ANY_DYNAMIC_DNS_MAX_HOSTS" => "1024",
        _ => "false",
    }
}

/// The bytes of a message in parts, with holes filled by this stage itself; holes of other stages stay empty.
pub fn assemble(ctx: &Ctx<'_>, parts: &[Part]) -> Vec<u8> {
    let mut stack: Vec<(u32, Vec<u8>)> = vec![(0, Vec::new())];
    for part in parts {
        match part {
            Part::Bytes(bytes) => stack.last_mut().expect("a frame").1.extend_from_slice(bytes),
            Part::Open(number) => stack.push((*number, Vec::new())),
            Part::Close => {
                let (number, body) = stack.pop().expect("an open field");
                push(&mut stack.last_mut().expect("a frame").1, number, &body);
            }
            Part::Call(call) => {
                let top = &mut stack.last_mut().expect("a frame").1;
                for item in fill(ctx, call) {
                    if call.field == 0 { top.extend(item) } else { push(top, call.field, &item) }
                }
            }
        }
    }
    stack.pop().expect("a frame").1
}

fn fill(ctx: &Ctx<'_>, call: &CallRef) -> Vec<Vec<u8>> {
    if call.stage != "listeners" {
        return Vec::new();
    }
    let output = crate::translate(ctx, &call.function, &call.args).expect("a call of this stage");
    items(ctx, &output).into_iter().map(|(_, bytes)| bytes).collect()
}

/// All items of an output, inclusions followed.
pub fn items(ctx: &Ctx<'_>, output: &Output) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for entry in &output.entries {
        match entry {
            Entry::Item(item) => out.push((item.key.clone(), assemble(ctx, &item.message.parts))),
            Entry::Include(call) if call.stage == "listeners" => {
                let inner = crate::translate(ctx, &call.function, &call.args).expect("a call of this stage");
                out.extend(items(ctx, &inner));
            }
            Entry::Include(_) => {}
        }
    }
    out
}

fn push(out: &mut Vec<u8>, number: u32, body: &[u8]) {
    trysail_sdk::prost::encoding::encode_key(number, trysail_sdk::prost::encoding::WireType::LengthDelimited, out);
    trysail_sdk::prost::encoding::encode_varint(body.len() as u64, out);
    out.extend_from_slice(body);
}
