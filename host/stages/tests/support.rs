//! A toy world: a snapshot of texts, and two stages over it.
#![allow(dead_code, reason = "each suite uses a part of it")]
#![allow(missing_docs, clippy::unwrap_used, reason = "support of tests")]

// Named, because cargo takes this file for a suite of its own as well, in which a module would lie elsewhere.
#[path = "support/guests.rs"]
pub mod guests;

use std::collections::BTreeMap;
use std::sync::Arc;

use trysail_model::{Affected, Answer, ObjectRef, Proxy, Query, QueryDecl, Snapshot};
use trysail_sdk::{CallRef, Ctx, Failure, Item, Message, Output, facts};
use trysail_stages::guest::Guest;
use trysail_stages::queries::OWN;
use trysail_stages::{Config, Engine, Limits, Native, NativeCode, Need, OutputDecl, Root};

/// Type URLs of the toy world: everything, and by name.
pub const ALL: &str = "type.googleapis.com/toy.All";
/// See [`ALL`].
pub const NAMED: &str = "type.googleapis.com/toy.Named";

/// The queries of the toy world, under names that the SDK knows.
pub const QUERIES: &[QueryDecl] = &[
    decl("setting", false, false, 1),
    decl("services-of-host", false, false, 1),
    decl("proxy", true, false, 1),
    decl("proxy-in-namespaces", true, true, 0),
    OWN[0],
    OWN[1],
    OWN[2],
];

const fn decl(kind: &'static str, about_proxy: bool, takes_list: bool, arity: usize) -> QueryDecl {
    QueryDecl { kind, about_proxy, predicate: false, takes_list, arity }
}

/// `setting(KEY)` is a text; `services-of-host(KEY)` a list of keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub revision: u64,
    pub texts: BTreeMap<String, String>,
    pub lists: BTreeMap<String, Vec<String>>,
}

impl World {
    pub fn text(mut self, key: &str, value: &str) -> Self {
        self.texts.insert(key.into(), value.into());
        self
    }

    pub fn list(mut self, key: &str, values: &[&str]) -> Self {
        self.lists.insert(key.into(), values.iter().map(|v| (*v).into()).collect());
        self
    }

    /// The queries that can be answered otherwise in `self` than in `old`.
    pub fn affected(&self, old: &World) -> Vec<Affected> {
        let keys = |a: &World, b: &World| -> Vec<Affected> {
            let texts =
                a.texts.iter().filter(|(k, v)| b.texts.get(*k) != Some(v)).map(|(k, _)| Query::new("setting", [k]));
            let lists = a.lists.iter().filter(|(k, v)| b.lists.get(*k) != Some(v));
            texts.chain(lists.map(|(k, _)| Query::new("services-of-host", [k]))).map(Affected::Query).collect()
        };
        [keys(self, old), keys(old, self)].concat()
    }
}

impl Snapshot for World {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn answer(&self, query: &Query) -> Answer {
        let object = || [ObjectRef::new("Toy", "", query.arg(0))];
        match query.kind {
            "setting" => Answer::new(self.texts.get(query.arg(0)).map(|t| t.clone().into_bytes().into()), object()),
            "services-of-host" => {
                use trysail_sdk::prost::Message as _;
                let list = self.lists.get(query.arg(0)).cloned();
                Answer::new(list.map(|values| facts::Strings { values }.encode_to_vec().into()), object())
            }
            _ => Answer::none(),
        }
    }

    fn answer_about(&self, proxy: &Proxy, query: &Query) -> Answer {
        match query.kind {
            "proxy" => Answer::new(proxy.metadata_text(query.arg(0)).map(|t| t.into_bytes().into()), []),
            "proxy-in-namespaces" => {
                let found = query.args.iter().find(|ns| **ns == *proxy.namespace);
                Answer::new(found.map(|ns| ns.clone().into_bytes().into()), [])
            }
            _ => Answer::none(),
        }
    }

    fn refresh(&self, _proxy: &Proxy) -> Option<Proxy> {
        None
    }

    fn without(&self, object: &ObjectRef) -> Arc<dyn Snapshot> {
        let mut less = self.clone();
        less.texts.remove(&*object.name);
        less.lists.remove(&*object.name);
        Arc::new(less)
    }
}

/// The plan: includes a `piece` for each name in the list `plan`, and an own item with the proxy's `tag` as a hole.
///
/// A `piece` is the text of its name; a text `for NS TEXT` is TEXT for proxies of the namespace only; `see KEY` is the output of
/// another piece; `each KEY` says key and size of its items, after the plugins at `clusters`; `have KEY` says whether another piece has any output; `none` is no item; `ask STAGE FUNCTION` is the output of
/// another stage; `wait REF` waits for another resource; `within KEY` holds another piece; `hooked POINT` says whether a plugin stands
/// there; `insert TEXT` is TEXT with a place for plugins' insertions about `inserted`.
pub fn toy(ctx: &Ctx<'_>, function: &str, args: &[String]) -> Result<Output, Failure> {
    let mut output = Output::empty();
    let arg = args.first().map_or("", String::as_str);
    match function {
        "all" => {
            for name in ctx.services_of_host("plan")? {
                output.include(CallRef::new("toy", "piece", [name]).hooked("clusters"));
            }
            output.item(Item::new(
                "own",
                Message::default().text(1, "shared").hole(2, CallRef::new("toy", "tag", [""; 0])),
            ));
        }
        "tag" => {
            let tag = ctx.proxy("TAG").unwrap_or_default();
            output.item(Item::new("tag", Message::default().text(1, &tag)));
        }
        "piece" | "named" => {
            let text = ctx.setting(arg);
            let words: Vec<&str> = text.split(' ').collect();
            let body = match words[..] {
                ["none"] | [""] => return Ok(output),
                ["for", namespace, text] => match ctx.proxy_in_namespaces(&[namespace]) {
                    Some(_) => text.to_owned(),
                    None => "for another".to_owned(),
                },
                ["see", key] => {
                    let seen: Option<facts::Strings> = ctx.derived("toy", "piece", &[key])?;
                    seen.map_or("nothing".to_owned(), |seen| seen.values.join("+"))
                }
                ["each", key] => {
                    let items = ctx.derived_items(&CallRef::new("toy", "piece", [key]).hooked("clusters"))?;
                    items.iter().map(|item| format!("{}:{} ", item.key, item.message.len())).collect()
                }
                ["have", key] => ctx.derived_exists("toy", "piece", &[key]).to_string(),
                ["found", code] => {
                    output.diagnose(trysail_sdk::Severity::Warning, arg, "", "as it is");
                    output.count_as(code);
                    text.clone()
                }
                ["two", first, second] => {
                    output.item(Item::new("first", Message::default().text(1, first)));
                    output.item(Item::new("second", Message::default().text(1, second)));
                    return Ok(output);
                }
                ["pick", key, item] => {
                    let seen: Option<facts::Strings> = ctx.derived_item("toy", "piece", item, &[key])?;
                    seen.map_or("nothing".to_owned(), |seen| seen.values.join("+"))
                }
                ["ask", stage, function] => {
                    let seen: Option<facts::Strings> = ctx.derived(stage, function, &[arg])?;
                    seen.map_or("nothing".to_owned(), |seen| seen.values.join("+"))
                }
                ["insert", text] => {
                    let hook = CallRef::new("hooks", "http-filters", ["inserted"]);
                    output.item(Item::new(arg, Message::default().text(1, text).splice(hook)));
                    return Ok(output);
                }
                ["claim", what] => {
                    let mut item = Item::new(arg, Message::default().text(1, &text));
                    item.claims.push(what.to_owned());
                    output.item(item);
                    return Ok(output);
                }
                ["wait", what] => {
                    let mut item = Item::new(arg, Message::default().text(1, &text));
                    item.refs.push(what.to_owned());
                    output.item(item);
                    return Ok(output);
                }
                ["within", key] => {
                    let hole = CallRef::new("toy", "piece", [key]);
                    output.item(Item::new(arg, Message::default().text(1, &text).hole(2, hole)));
                    return Ok(output);
                }
                ["hooked", point] => ctx.hooked(point).to_string(),
                ["panic"] => panic!("asked to"),
                _ => text,
            };
            output.item(Item::new(arg, Message::default().text(1, &body)));
        }
        other => return Err(Failure::UnknownFunction(other.into())),
    }
    Ok(output)
}

pub fn native() -> Arc<dyn Guest> {
    Arc::new(Native::new("toy", NativeCode::Stage(toy)))
}

pub fn config() -> Config {
    let root =
        |type_url, function, named, reference| Root { type_url, stage: "toy", function, named, hook: "", reference };
    Config {
        queries: QUERIES,
        roots: vec![root(ALL, "all", false, ""), root(NAMED, "named", true, "named")],
        inserted: Vec::new(),
        reports: Vec::new(),
        outputs: vec![OutputDecl { function: ("toy", "piece"), message: "toy.Piece", need: Need::Nothing }],
        gate: None,
        hold_back: true,
        limits: Limits::default(),
        budget: Default::default(),
        audit_share: 1.0,
        on_run: None,
        on_settled: None,
    }
}

pub fn engine(world: &World) -> Arc<Engine> {
    Engine::new(config(), [native()], Arc::new(world.clone()))
}

pub fn proxy(id: &str, namespace: &str, tag: &str) -> Proxy {
    let metadata = serde_json::json!({"NAMESPACE": namespace, "TAG": tag});
    let metadata = metadata.as_object().unwrap().clone();
    Proxy::from_node(&format!("sidecar~10.0.0.1~{id}.{namespace}~{namespace}.svc"), metadata, Default::default())
        .unwrap()
}

/// The resources of a type as name and text (without the tag and length of field 1).
pub fn resources(engine: &Arc<Engine>, proxy: &Proxy) -> Vec<(String, Vec<u8>)> {
    let served = engine.resources(proxy, &ALL.into(), &trysail_model::Watched::Wildcard);
    let view = served.node.expect("nothing faults at the root").entries.view();
    view.resources.iter().map(|r| (r.name.to_string(), r.body.to_bytes().to_vec())).collect()
}

/// The text of one resource.
pub fn text(engine: &Arc<Engine>, proxy: &Proxy, name: &str) -> Option<String> {
    let found = resources(engine, proxy).into_iter().find(|(found, _)| found == name)?;
    Some(String::from_utf8_lossy(&found.1[2..]).into_owned())
}
