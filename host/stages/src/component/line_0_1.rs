//! The 0.1 line at the border: stages stand on it, and plugins that were built for it run for ever. What it lacks beside the
//! line of today (its own configuration, JSON, edits) a plugin of it does without; all else is lifted here and nowhere else.

mod abi;

use std::sync::Arc;

use trysail_model::QueryDecl;
use trysail_sdk::{Failure, Level, Outcome};
use wasmtime::component::{Instance, Linker, TypedFunc};
use wasmtime::{Store, StoreContextMut};

use super::{Answered, State, exported, link_facts};
use crate::guest::{Done, Job};

/// Version of the package.
pub(super) const VERSION: &str = "0.1.0";

type Translate = TypedFunc<(Arc<str>, Arc<[String]>), (Result<abi::Output, abi::Failure>,)>;
type Apply = TypedFunc<(Arc<str>, Arc<[String]>), (Result<abi::Outcome, abi::Failure>,)>;
type Points = TypedFunc<(), (Vec<String>,)>;

/// The points of this line. What came later a plugin of it does not know, and would take for something else.
const POINTS: [&str; 7] =
    ["clusters", "endpoints", "routes", "virtual-host", "listener", "http-filters", "network-filters"];

/// What an instance of a stage exports.
pub(super) struct Stage(Translate);

/// What an instance of a plugin exports.
pub(super) struct Plugin {
    points: Points,
    apply: Apply,
}

/// Links the facts, the log, and the fragment of plugins.
pub(super) fn link(linker: &mut Linker<State>, queries: &[QueryDecl]) -> wasmtime::Result<()> {
    link_facts(linker, VERSION, queries)?;
    let mut log = linker.instance(&super::interface("log", VERSION))?;
    log.func_wrap("report", |mut store: StoreContextMut<'_, State>, (level, message): (abi::Level, String)| {
        store.data_mut().report(Level::from(level), &message);
        Ok(())
    })?;
    let mut fragment = linker.instance(&super::interface("fragment", VERSION))?;
    fragment.func_wrap("items", |store: StoreContextMut<'_, State>, (): ()| {
        let item =
            |(key, message): &(String, bytes::Bytes)| abi::FragmentItem { key: key.clone(), message: message.to_vec() };
        Ok((store.data().items.iter().map(item).collect::<Vec<_>>(),))
    })
}

impl Stage {
    /// The exports of an instance.
    pub(super) fn of(instance: &Instance, store: &mut Store<State>) -> wasmtime::Result<Stage> {
        Ok(Stage(exported(instance, store, "translation", VERSION, "translate")?))
    }

    /// Calls it.
    pub(super) fn call(&self, store: &mut Store<State>, job: &Job) -> wasmtime::Result<Answered> {
        let Job::Translate { function, args } = job else { return Ok(Err(mistaken())) };
        let (result,) = self.0.call(store, (function.clone(), args.clone()))?;
        Ok(result.map(|output| Done::Output(output.into())).map_err(Failure::from))
    }
}

/// Arguments of the hook points of this line that has most.
const MAX_ARGUMENTS: usize = 3;

impl Plugin {
    /// The exports of an instance; `None` when it is no plugin of this line.
    pub(super) fn of(instance: &Instance, store: &mut Store<State>) -> wasmtime::Result<Option<Plugin>> {
        if instance.get_export_index(&mut *store, None, &super::interface("hooks", VERSION)).is_none() {
            return Ok(None);
        }
        let points = exported(instance, store, "hooks", VERSION, "points")?;
        Ok(Some(Plugin { points, apply: exported(instance, store, "hooks", VERSION, "apply")? }))
    }

    /// The hook points that it wants.
    pub(super) fn points(&self, store: &mut Store<State>) -> wasmtime::Result<Vec<String>> {
        Ok(self.points.call(store, ())?.0)
    }

    /// Calls it.
    pub(super) fn call(&self, store: &mut Store<State>, job: &Job) -> wasmtime::Result<Answered> {
        let Job::Apply { point, args, terms, .. } = job else { return Ok(Err(mistaken())) };
        if terms.as_ref().is_some_and(|(place, _)| !POINTS.contains(&&*place.point)) {
            return Ok(Ok(Done::Outcome(Outcome::Unchanged)));
        }
        // What stages say besides by now, this line has no place for.
        let args: Arc<[String]> = args[..args.len().min(MAX_ARGUMENTS)].into();
        let (result,) = self.apply.call(store, (point.clone(), args))?;
        Ok(result.map(|outcome| Done::Outcome(outcome.into())).map_err(Failure::from))
    }
}

/// A stage is asked for a plugin's work, or the reverse.
pub(super) fn mistaken() -> Failure {
    Failure::UnknownFunction("a stage is no plugin, nor the reverse".into())
}
