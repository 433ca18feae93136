//! The 0.2 line at the border: an interface for each kind of hook, edits, JSON, a configuration.

mod abi;

use bytes::Bytes;
use trysail_model::QueryDecl;
use trysail_sdk::{Failure, Level, Outcome};
use wasmtime::component::{Instance, Linker, TypedFunc};
use wasmtime::{Store, StoreContextMut};

use super::{Answered, Ended, State, ask, exported, interface, link_facts};
use crate::fault::FaultKind;
use crate::guest::{Done, Job, Unanswered};

/// Version of the package.
pub(super) const VERSION: &str = "0.2.0";

/// The interfaces of hooks: the hook points as plugins know them.
pub const HOOKS: [&str; 19] = [
    "clusters",
    "endpoints",
    "routes",
    "virtual-hosts",
    "route-configurations",
    "listeners",
    "filter-chains",
    "connection-managers",
    "access-logs",
    "transport-sockets",
    "authn-filters",
    "authz-filters",
    "rate-limit-filters",
    "observability-filters",
    "http-filters",
    "network-filters",
    "new-clusters",
    "new-listeners",
    "patch",
];

type Apply = TypedFunc<(abi::Target,), (Result<abi::Outcome, abi::Failure>,)>;

/// What an instance of a plugin exports: the hooks that it uses.
pub(super) struct Plugin(Vec<(&'static str, Apply)>);

/// Links what plugins may ask.
pub(super) fn link(linker: &mut Linker<State>, queries: &[QueryDecl]) -> wasmtime::Result<()> {
    link_facts(linker, VERSION, queries)?;
    let mut log = linker.instance(&interface("log", VERSION))?;
    log.func_wrap("report", |mut store: StoreContextMut<'_, State>, (level, message): (abi::Level, String)| {
        store.data_mut().report(Level::from(level), &message);
        Ok(())
    })?;
    let mut configuration = linker.instance(&interface("configuration", VERSION))?;
    configuration.func_wrap("json", |store: StoreContextMut<'_, State>, (): ()| {
        let terms = store.data().terms.as_ref();
        Ok((terms.map_or_else(|| "{}".to_owned(), |(_, terms)| terms.configuration().to_owned()),))
    })?;
    let mut fragment = linker.instance(&interface("fragment", VERSION))?;
    fragment.func_wrap("items", |store: StoreContextMut<'_, State>, (): ()| {
        let item = |(key, message): &(String, Bytes)| abi::Item { key: key.clone(), message: message.to_vec() };
        Ok((store.data().items.iter().map(item).collect::<Vec<_>>(),))
    })?;
    fragment.func_wrap("items-json", |mut store: StoreContextMut<'_, State>, (): ()| {
        let state = store.data_mut();
        let items = state.items.iter().map(|(key, message)| {
            let (place, terms) = state.terms.as_ref().ok_or_else(|| NO_TERMS.to_owned())?;
            Ok(abi::JsonItem { key: key.clone(), message: terms.item_json(place, message)? })
        });
        match items.collect::<Result<Vec<_>, String>>() {
            Ok(items) => Ok((items,)),
            Err(why) => Err(ended(state, FaultKind::BadOutput(why))),
        }
    })?;
    let mut answers = linker.instance(&interface("answers", VERSION))?;
    answers.func_wrap("json", |mut store: StoreContextMut<'_, State>, (name, args): (String, Vec<String>)| {
        let terms = store.data().terms.as_ref().map(|(_, terms)| terms.clone());
        let Some(terms) = terms else { return Err(ended(store.data_mut(), FaultKind::Failed(NO_TERMS.into()))) };
        let Some(query) = terms.query(&name) else {
            return Err(ended(store.data_mut(), FaultKind::Failed(format!("asked {name:?}, which is no question"))));
        };
        let answer = ask(&mut store, query, args.clone())?;
        match terms.answer_json(query, &args, answer.as_deref()) {
            Ok(json) => Ok((json,)),
            Err(why) => Err(ended(store.data_mut(), FaultKind::Failed(why))),
        }
    })
}

/// Said where JSON is asked for and nobody can make it.
const NO_TERMS: &str = "nobody is there who knows the messages";

/// Ends the run for a reason.
fn ended(state: &mut State, why: FaultKind) -> wasmtime::Error {
    state.unanswered = Some(Unanswered::Own(why));
    wasmtime::Error::new(Ended)
}

impl Plugin {
    /// The exports of an instance; `None` when it has no hook of this line.
    pub(super) fn of(instance: &Instance, store: &mut Store<State>) -> wasmtime::Result<Option<Plugin>> {
        let mut hooks = Vec::new();
        for hook in HOOKS {
            if instance.get_export_index(&mut *store, None, &interface(hook, VERSION)).is_some() {
                hooks.push((hook, exported(instance, store, hook, VERSION, "apply")?));
            }
        }
        Ok((!hooks.is_empty()).then_some(Plugin(hooks)))
    }

    /// The hooks that it uses.
    pub(super) fn points(&self) -> Vec<String> {
        self.0.iter().map(|(hook, _)| (*hook).to_owned()).collect()
    }

    /// Calls it.
    pub(super) fn call(&self, store: &mut Store<State>, job: &Job) -> wasmtime::Result<Answered> {
        let Job::Apply { point, terms, .. } = job else { return Ok(Err(super::line_0_1::mistaken())) };
        let Some((_, apply)) = self.0.iter().find(|(hook, _)| *hook == &**point) else {
            return Ok(Err(Failure::UnknownFunction(point.to_string())));
        };
        let target = terms.as_ref().map(|(place, _)| place.target.clone()).unwrap_or_default();
        let (result,) = apply.call(store, (target.into(),))?;
        let done = result.map(|outcome| Done::Outcome(Outcome::Edited(outcome.into())));
        Ok(done.map_err(Failure::from))
    }
}
