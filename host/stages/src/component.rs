//! Components: guests in the sandbox.
//!
//! A component gets no WASI. It sees the queries and one write-only import, has a memory limit and a deadline, and is
//! thrown away when it traps.

mod cache;
mod line_0_1;
mod line_0_2;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use trysail_model::{Fingerprint, QueryDecl};
use trysail_sdk::{Failure, Level};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentNamedList, Instance, InstancePre, Lift, Linker, Lower, TypedFunc};
use wasmtime::{Store, StoreContextMut};

use crate::fault::FaultKind;
use crate::guest::{Asker, Done, Guest, Job, Limits, Unanswered, output_size};
use crate::terms::{Place, Terms};

pub use self::line_0_2::HOOKS;

/// How often the epoch moves: the grain of deadlines.
const TICK: Duration = Duration::from_millis(2);
/// An instance that ran this often is replaced by a new one, since its linear memory never shrinks.
const CALLS_PER_INSTANCE: u32 = 10_000;
/// An instance with more memory than this is replaced, bytes.
const MEMORY_PER_INSTANCE: usize = 16 << 20;
/// Warm instances kept of each stage.
const WARM: usize = 16;
/// Warm instances kept of each plugin: there may be many plugins, and each instance keeps its memory.
const WARM_OF_PLUGIN: usize = 4;
/// What a component may consist of: memories, tables and core instances, and the elements of all its tables.
const MAX_MEMORIES: usize = 8;
/// See [`MAX_MEMORIES`]. Those of script languages are linked from dozens of libraries.
const MAX_INSTANCES: usize = 100;
/// See [`MAX_MEMORIES`].
const MAX_TABLE_ELEMENTS: usize = 200_000;
/// The package that this host serves, in all its lines.
const PACKAGE: &str = "trysail:stage";

/// What can go wrong when a component is loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bytes are not a component, or of one that needs more memory than there is for any.
    #[error("{name} is not a WebAssembly component that can run here")]
    NotAComponent {
        /// Stage or plugin.
        name: String,
        /// Why.
        #[source]
        source: wasmtime::Error,
    },
    /// It imports something that the host does not offer, or exports other than expected.
    #[error(
        "{name} does not fit this host, which serves {PACKAGE}@{} and @{}: {why}",
        line_0_1::VERSION,
        line_0_2::VERSION
    )]
    DoesNotFit {
        /// Stage or plugin.
        name: String,
        /// What it needs and does not get, in plain words.
        why: String,
        /// What the runtime said.
        #[source]
        source: wasmtime::Error,
    },
    /// It failed when an instance was to be made of it.
    #[error("{name} failed at its start: it {kind}")]
    Start {
        /// Stage or plugin.
        name: String,
        /// How.
        kind: FaultKind,
    },
    /// A plugin failed when it was asked for its hook points.
    #[error("plugin {name} failed when asked for its hook points: {kind}")]
    Points {
        /// The plugin.
        name: String,
        /// How.
        kind: FaultKind,
    },
    /// The runtime could not start.
    #[error("the WebAssembly runtime cannot start")]
    Runtime(#[source] wasmtime::Error),
}

/// What a component has on its outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    /// The lines of our interfaces that it uses.
    pub lines: Vec<String>,
    /// What it imports.
    pub imports: Vec<String>,
    /// What it exports.
    pub exports: Vec<String>,
    /// The questions that it can ask: those it does not import it cannot.
    pub questions: Vec<String>,
}

/// Settings of the runtime.
#[derive(Clone, Debug, Default)]
pub struct RuntimeConfig {
    /// Folder for compiled code; without one everything is compiled at every start.
    pub cache: Option<PathBuf>,
}

/// The sandboxes with their clock.
pub struct Runtime {
    stages: Sandbox,
    /// Of their own, so that no plugin takes the last instance that a stage could have.
    plugins: Sandbox,
    ticks: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Components compiled since the start; those found in the cache do not count.
    compiled: AtomicU64,
}

/// A wasmtime engine, and the linker for its components.
struct Sandbox {
    engine: wasmtime::Engine,
    linker: Linker<State>,
    cache: Option<cache::Cache>,
}

impl Sandbox {
    fn new(role: Role, cache: Option<&PathBuf>, queries: &[QueryDecl]) -> wasmtime::Result<Sandbox> {
        let engine = wasmtime_engine(role)?;
        let mut linker = Linker::new(&engine);
        line_0_1::link(&mut linker, queries)?;
        line_0_2::link(&mut linker, queries)?;
        let cache = cache.and_then(|folder| cache::Cache::open(folder.clone(), &engine));
        Ok(Sandbox { engine, linker, cache })
    }
}

/// What an instance's store holds: during a call, who answers.
struct State {
    asker: Option<Box<dyn Asker>>,
    /// Why the host ended the run.
    unanswered: Option<Unanswered>,
    items: Arc<[(String, bytes::Bytes)]>,
    terms: Option<(Place, Arc<dyn Terms>)>,
    memory_limit: usize,
    memory_refused: bool,
    memory: usize,
    table_elements: usize,
    /// The host's time for answers counts as the guest's.
    pays_for_answers: bool,
    /// Ticks left when the guest was last entered, and the tick at that time.
    deadline: u64,
    entered: u64,
    ticks: Arc<AtomicU64>,
}

impl State {
    fn report(&mut self, level: Level, message: &str) {
        if let Some(asker) = &mut self.asker {
            asker.report(level, message);
        }
    }
}

impl wasmtime::ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        // The limit is for all memories of an instance together.
        let total = self.memory.saturating_sub(current).saturating_add(desired);
        if total > self.memory_limit {
            self.memory_refused = true;
            return Ok(false);
        }
        self.memory = total;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_sub(current).saturating_add(desired);
        if total > MAX_TABLE_ELEMENTS {
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        MAX_INSTANCES
    }

    fn tables(&self) -> usize {
        MAX_INSTANCES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

/// Ends a run from inside an import; the reason is in the state.
#[derive(Debug, thiserror::Error)]
#[error("the host ended the run")]
struct Ended;

impl Runtime {
    /// Starts the runtime. `queries` are linked as imports of the facts interface.
    ///
    /// # Errors
    /// When wasmtime does not start on this machine.
    pub fn new(config: RuntimeConfig, queries: &[QueryDecl]) -> Result<Arc<Runtime>, LoadError> {
        let sandbox = |role| Sandbox::new(role, config.cache.as_ref(), queries).map_err(LoadError::Runtime);
        let (stages, plugins) = (sandbox(Role::Stage)?, sandbox(Role::Plugin)?);
        let ticks = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let clock = ([stages.engine.weak(), plugins.engine.weak()], ticks.clone(), stop.clone());
        let run = move || {
            let (engines, ticks, stop) = clock;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                ticks.fetch_add(1, Ordering::Relaxed);
                for engine in &engines {
                    let Some(engine) = engine.upgrade() else { return };
                    engine.increment_epoch();
                }
            }
        };
        std::thread::Builder::new()
            .name("epochs".into())
            .spawn(run)
            .map_err(|error| LoadError::Runtime(error.into()))?;
        Ok(Arc::new(Runtime { stages, plugins, ticks, stop, compiled: AtomicU64::new(0) }))
    }

    /// Number of components that had to be compiled.
    pub fn compiled(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// Loads a stage.
    ///
    /// # Errors
    /// When the bytes are no component of the `stage` world.
    pub fn stage(self: &Arc<Self>, name: &str, bytes: &[u8]) -> Result<Arc<dyn Guest>, LoadError> {
        Ok(Arc::new(self.load(name, bytes, Role::Stage)?))
    }

    /// Loads a plugin and asks it for its hook points.
    ///
    /// # Errors
    /// When the bytes are no component of the `plugin` world, or it faults when asked.
    pub fn plugin(self: &Arc<Self>, name: &str, bytes: &[u8]) -> Result<(Arc<dyn Guest>, Vec<String>), LoadError> {
        let guest = self.load(name, bytes, Role::Plugin)?;
        let points = guest.points()?;
        Ok((Arc::new(guest), points))
    }

    /// What a component has on its outside, whether it fits or not.
    ///
    /// # Errors
    /// When the bytes are no component.
    pub fn surface(&self, bytes: &[u8]) -> Result<Surface, LoadError> {
        let engine = &self.plugins.engine;
        let component = Component::new(engine, bytes)
            .map_err(|source| LoadError::NotAComponent { name: "it".to_owned(), source })?;
        let outside = component.component_type();
        let mut surface = Surface::default();
        for (name, item) in outside.imports(engine) {
            surface.imports.push(name.to_owned());
            let facts = name.starts_with(PACKAGE) && name.contains("/facts@");
            if let (true, ComponentItem::ComponentInstance(instance)) = (facts, item.ty) {
                surface.questions.extend(instance.exports(engine).map(|(question, _)| question.to_owned()));
            }
        }
        surface.exports = outside.exports(engine).map(|(name, _)| name.to_owned()).collect();
        let of_line = |name: &String| Some(name.strip_prefix(PACKAGE)?.split_once('@')?.1.to_owned());
        let mut lines: Vec<String> = surface.imports.iter().chain(&surface.exports).filter_map(of_line).collect();
        lines.sort();
        lines.dedup();
        surface.lines = lines.into_iter().map(|line| format!("{PACKAGE}@{line}")).collect();
        Ok(surface)
    }

    fn load(self: &Arc<Self>, name: &str, bytes: &[u8], role: Role) -> Result<ComponentGuest, LoadError> {
        let digest = Fingerprint::of(bytes).to_string();
        let Sandbox { engine, linker, cache } = match role {
            Role::Stage => &self.stages,
            Role::Plugin => &self.plugins,
        };
        let component = match cache.as_ref().and_then(|cache| cache.get(engine, &digest)) {
            Some(component) => component,
            None => {
                self.compiled.fetch_add(1, Ordering::Relaxed);
                let component = Component::new(engine, bytes)
                    .map_err(|source| LoadError::NotAComponent { name: name.to_owned(), source })?;
                if let Some(cache) = cache {
                    cache.put(&digest, &component);
                }
                component
            }
        };
        let misfit = |source: wasmtime::Error| LoadError::DoesNotFit {
            name: name.to_owned(),
            why: misfit(engine, &component),
            source,
        };
        let pre = linker.instantiate_pre(&component).map_err(misfit)?;
        let guest =
            ComponentGuest { name: name.to_owned(), digest, role, pre, runtime: self.clone(), warm: Mutex::default() };
        // An instance at once: a component whose exports do not fit must not be found out by a proxy.
        // Nobody waits for it.
        let limits = Limits::default().longer();
        let instance = guest.instance(&limits).map_err(|unready| match unready {
            Unready::Misfit(source) => misfit(source),
            Unready::Fault(kind) => LoadError::Start { name: name.to_owned(), kind: for_good(kind) },
        })?;
        guest.warm.lock().push(instance);
        Ok(guest)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Deterministic where wasm leaves a choice; epochs for deadlines; pooled memory where the machine allows it.
fn wasmtime_engine(role: Role) -> wasmtime::Result<wasmtime::Engine> {
    let config = |pooled: bool| {
        let mut config = wasmtime::Config::new();
        config.wasm_component_model(true);
        config.epoch_interruption(true);
        config.cranelift_nan_canonicalization(true);
        config.relaxed_simd_deterministic(true);
        config.wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
        if let Role::Plugin = role {
            // They are compiled while others work; a large one must not take all cores from these.
            config.parallel_compilation(false);
        }
        if pooled {
            let mut pool = wasmtime::PoolingAllocationConfig::default();
            pool.total_component_instances(256)
                .total_core_instances(1024)
                .total_memories(256)
                .total_tables(1024)
                .max_memories_per_component(MAX_MEMORIES as u32)
                .max_tables_per_component(MAX_INSTANCES as u32)
                .max_core_instances_per_component(MAX_INSTANCES as u32)
                .max_memory_size(256 << 20)
                .linear_memory_keep_resident(1 << 20);
            config.allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool));
        }
        config
    };
    wasmtime::Engine::new(&config(true)).or_else(|error| {
        tracing::warn!(%error, "no address space for pooled instances; allocating them on demand");
        wasmtime::Engine::new(&config(false))
    })
}

/// Links the facts of a line.
fn link_facts(linker: &mut Linker<State>, version: &str, queries: &[QueryDecl]) -> wasmtime::Result<()> {
    let mut facts = linker.instance(&interface("facts", version))?;
    for decl in queries {
        let kind = decl.kind;
        // The shapes of the functions in facts.wit. Predicates return a truth value, all others bytes or none.
        match (decl.takes_list, decl.arity, decl.predicate) {
            (true, 0, false) => facts.func_wrap(kind, move |s, (l,): (Vec<String>,)| bytes(s, kind, l))?,
            (true, 0, true) => facts.func_wrap(kind, move |s, (l,): (Vec<String>,)| truth(s, kind, l))?,
            (true, 2, false) => facts.func_wrap(kind, move |s, (a, b, l): (String, String, Vec<String>)| {
                bytes(s, kind, [vec![a, b], l].concat())
            })?,
            (true, 3, false) => {
                facts.func_wrap(kind, move |s, (a, b, c, l): (String, String, String, Vec<String>)| {
                    bytes(s, kind, [vec![a, b, c], l].concat())
                })?
            }
            (true, 2, true) => facts.func_wrap(kind, move |s, (a, b, l): (String, String, Vec<String>)| {
                truth(s, kind, [vec![a, b], l].concat())
            })?,
            (false, 0, false) => facts.func_wrap(kind, move |s, (): ()| bytes(s, kind, vec![]))?,
            (false, 1, false) => facts.func_wrap(kind, move |s, (a,): (String,)| bytes(s, kind, vec![a]))?,
            (false, 1, true) => facts.func_wrap(kind, move |s, (a,): (String,)| truth(s, kind, vec![a]))?,
            (false, 2, false) => {
                facts.func_wrap(kind, move |s, (a, b): (String, String)| bytes(s, kind, vec![a, b]))?
            }
            shape => wasmtime::bail!("query {kind} has a shape that no function of the interface has: {shape:?}"),
        }
    }
    Ok(())
}

/// The full name of an interface of ours.
fn interface(name: &str, version: &str) -> String {
    format!("{PACKAGE}/{name}@{version}")
}

fn bytes(
    mut store: StoreContextMut<'_, State>,
    kind: &'static str,
    args: Vec<String>,
) -> wasmtime::Result<(Option<Vec<u8>>,)> {
    Ok((ask(&mut store, kind, args)?.map(Vec::from),))
}

fn truth(mut store: StoreContextMut<'_, State>, kind: &'static str, args: Vec<String>) -> wasmtime::Result<(bool,)> {
    Ok((ask(&mut store, kind, args)?.is_some(),))
}

/// Answers a question. Time spent in other calls that have to be made for the answer is not a stage's. A plugin has no such
/// questions; what the host does for its others is its time, or asking would be a way to have more of that than anybody.
fn ask(
    store: &mut StoreContextMut<'_, State>,
    kind: &'static str,
    args: Vec<String>,
) -> wasmtime::Result<Option<bytes::Bytes>> {
    let state = store.data_mut();
    let Some(asker) = &mut state.asker else {
        // Asked for its hook points, a plugin may ask nothing.
        state.unanswered = Some(Unanswered::Own(FaultKind::Queries(0)));
        return Err(wasmtime::Error::new(Ended));
    };
    let before = state.ticks.load(Ordering::Relaxed);
    let answer = asker.ask(kind, args);
    let now = state.ticks.load(Ordering::Relaxed);
    match answer {
        Ok(answer) => {
            if now != before && !state.pays_for_answers {
                state.deadline = state.deadline.saturating_sub(before - state.entered);
                state.entered = now;
                let left = state.deadline;
                store.set_epoch_deadline(left.max(1));
            }
            Ok(answer)
        }
        Err(why) => {
            state.unanswered = Some(why);
            Err(wasmtime::Error::new(Ended))
        }
    }
}

/// What a component needs and this host does not have, or lacks itself, in plain words.
fn misfit(engine: &wasmtime::Engine, component: &Component) -> String {
    let component = component.component_type();
    let lines = [line_0_1::VERSION, line_0_2::VERSION];
    for (name, _) in component.imports(engine) {
        if name.starts_with("wasi:") {
            return format!("it wants {name}; plugins get no system interfaces, build it without WASI");
        }
        let Some((interface, version)) = name.split_once('@').filter(|(name, _)| name.starts_with(PACKAGE)) else {
            return format!("it wants {name}, which is none of our interfaces");
        };
        if !lines.contains(&version) {
            return format!("it wants {interface} in version {version}: build it for one of these lines");
        }
    }
    let exports: Vec<&str> = component.exports(engine).map(|(name, _)| name).collect();
    let ours = |name: &&&str| name.split_once('@').is_some_and(|(_, version)| lines.contains(&version));
    if !exports.iter().any(|name| ours(&name)) {
        return format!("it exports {}, and no hook of ours", exports.join(", "));
    }
    "a function is missing or of another type".to_owned()
}

/// What a component is loaded as.
#[derive(Clone, Copy)]
enum Role {
    Stage,
    Plugin,
}

/// A component and its warm instances.
struct ComponentGuest {
    name: String,
    digest: String,
    role: Role,
    pre: InstancePre<State>,
    runtime: Arc<Runtime>,
    warm: Mutex<Vec<Warm>>,
}

/// What a guest answered to a job.
type Answered = Result<Done, Failure>;

/// What an instance exports: the lines meet here.
enum Exports {
    Stage(line_0_1::Stage),
    Old(line_0_1::Plugin),
    Plugin(line_0_2::Plugin),
}

impl Exports {
    fn of(role: Role, instance: &Instance, store: &mut Store<State>) -> wasmtime::Result<Exports> {
        if let Role::Stage = role {
            return Ok(Exports::Stage(line_0_1::Stage::of(instance, store)?));
        }
        // Who exports both prefers the newer one.
        if let Some(plugin) = line_0_2::Plugin::of(instance, store)? {
            return Ok(Exports::Plugin(plugin));
        }
        match line_0_1::Plugin::of(instance, store)? {
            Some(plugin) => Ok(Exports::Old(plugin)),
            None => wasmtime::bail!("it exports no hook"),
        }
    }

    fn call(&self, store: &mut Store<State>, job: &Job) -> wasmtime::Result<Answered> {
        match self {
            Exports::Stage(stage) => stage.call(store, job),
            Exports::Old(plugin) => plugin.call(store, job),
            Exports::Plugin(plugin) => plugin.call(store, job),
        }
    }
}

/// An instance that waits for its next call.
struct Warm {
    store: Store<State>,
    exports: Exports,
    n_calls: u32,
}

impl ComponentGuest {
    fn instance(&self, limits: &Limits) -> Result<Warm, Unready> {
        let state = State {
            asker: None,
            unanswered: None,
            items: [].into(),
            terms: None,
            memory_limit: limits.memory,
            memory_refused: false,
            memory: 0,
            table_elements: 0,
            pays_for_answers: matches!(self.role, Role::Plugin),
            deadline: 0,
            entered: 0,
            ticks: self.runtime.ticks.clone(),
        };
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(|state| state);
        store.set_epoch_deadline(ticks(limits.deadline));
        if let Role::Plugin = self.role {
            // What it hands over is copied; lists whose elements are all the same long text would be more than there is memory.
            store.set_hostcall_fuel(handed_over(limits));
        }
        let instance =
            self.pre.instantiate(&mut store).map_err(|error| match why(store.data_mut(), &error, limits) {
                Unanswered::Own(kind) => Unready::Fault(kind),
                Unanswered::Below(fault) => Unready::Fault(fault.kind),
            })?;
        let exports = Exports::of(self.role, &instance, &mut store).map_err(Unready::Misfit)?;
        Ok(Warm { store, exports, n_calls: 0 })
    }

    /// The hook points that a plugin wants.
    fn points(&self) -> Result<Vec<String>, LoadError> {
        let limits = Limits::default();
        let fail = |kind| LoadError::Points { name: self.name.clone(), kind };
        let mut warm = self.instance(&limits).map_err(|unready| fail(unready.into()))?;
        let points = match &warm.exports {
            Exports::Stage(_) => return Err(fail(FaultKind::Failed("it is a stage, not a plugin".into()))),
            // What it exports says where it works.
            Exports::Plugin(plugin) => return Ok(plugin.points()),
            Exports::Old(plugin) => plugin,
        };
        warm.store.set_epoch_deadline(ticks(limits.deadline));
        points.points(&mut warm.store).map_err(|error| match warm.store.data_mut().unanswered.take() {
            Some(Unanswered::Own(kind)) => fail(kind),
            _ => fail(FaultKind::Trap(format!("{error:#}"))),
        })
    }
}

/// A deadline in ticks, never less than two: the first may come at once.
fn ticks(deadline: Duration) -> u64 {
    (deadline.as_millis() / TICK.as_millis()).max(2) as u64
}

fn exported<P, R>(
    instance: &Instance,
    store: &mut Store<State>,
    name: &str,
    version: &str,
    function: &str,
) -> wasmtime::Result<TypedFunc<P, R>>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let interface = interface(name, version);
    let Some(outer) = instance.get_export_index(&mut *store, None, &interface) else {
        wasmtime::bail!("it does not export {interface}");
    };
    let Some(inner) = instance.get_export_index(&mut *store, Some(&outer), function) else {
        wasmtime::bail!("{interface} has no function {function}");
    };
    instance.get_typed_func(store, inner)
}

impl Guest for ComponentGuest {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn run(
        &self,
        job: &Job,
        asker: Box<dyn Asker>,
        limits: &Limits,
        fresh: bool,
    ) -> (Result<Done, Unanswered>, Box<dyn Asker>) {
        let warm = if fresh { None } else { self.warm.lock().pop() };
        let mut warm = match warm.map_or_else(|| self.instance(limits), Ok) {
            Ok(warm) => warm,
            Err(unready) => return (Err(Unanswered::Own(unready.into())), asker),
        };
        let deadline = ticks(limits.deadline);
        let state = warm.store.data_mut();
        state.asker = Some(asker);
        state.memory_limit = limits.memory;
        state.deadline = deadline;
        state.entered = state.ticks.load(Ordering::Relaxed);
        if let Job::Apply { items, terms, .. } = job {
            state.items = items.clone();
            state.terms.clone_from(terms);
        }
        warm.store.set_epoch_deadline(deadline);
        if let Role::Plugin = self.role {
            warm.store.set_hostcall_fuel(handed_over(limits));
        }
        let called = warm.exports.call(&mut warm.store, job);
        let state = warm.store.data_mut();
        let mut asker = state.asker.take().expect("it was put there above and only this function takes it");
        asker.had_memory(state.memory);
        state.items = [].into();
        state.terms = None;
        let result = match called {
            Ok(Ok(done)) => match output_size(&done) {
                size if size > limits.output => Err(Unanswered::Own(FaultKind::OutputSize(size, limits.output))),
                _ => Ok(done),
            },
            Ok(Err(failure)) => Err(Unanswered::Own(FaultKind::Failed(failure.to_string()))),
            // The store is thrown away with whatever state the trap left in it.
            Err(error) => return (Err(why(state, &error, limits)), asker),
        };
        warm.n_calls += 1;
        let state = warm.store.data();
        let worn = warm.n_calls >= CALLS_PER_INSTANCE || state.memory > MEMORY_PER_INSTANCE || state.memory_refused;
        if !fresh && !worn {
            let mut pool = self.warm.lock();
            let most = if let Role::Plugin = self.role { WARM_OF_PLUGIN } else { WARM };
            if pool.len() < most {
                pool.push(warm);
            }
        }
        (result, asker)
    }
}

/// Why there is no instance.
enum Unready {
    /// What it exports is not what it should be.
    Misfit(wasmtime::Error),
    /// It trapped, or went beyond its limits, at its start.
    Fault(FaultKind),
}

impl From<Unready> for FaultKind {
    fn from(unready: Unready) -> FaultKind {
        match unready {
            Unready::Misfit(error) => FaultKind::Trap(format!("{error:#}")),
            Unready::Fault(kind) => kind,
        }
    }
}

/// A fault where there is no second try.
fn for_good(kind: FaultKind) -> FaultKind {
    match kind {
        FaultKind::Slow(limit) => FaultKind::Deadline(limit),
        other => other,
    }
}

/// What a plugin may hand over in one call of the host, or as its outcome, bytes with what the host needs around them.
fn handed_over(limits: &Limits) -> usize {
    limits.output.saturating_mul(2).saturating_add(1 << 20)
}

/// Words of the runtime's error for who hands over more; it has no type that could be asked for.
const HANDED_OVER: &str = "too much data is being copied between the host and the guest";

/// Why a run ended in an error.
fn why(state: &mut State, error: &wasmtime::Error, limits: &Limits) -> Unanswered {
    if let Some(why) = state.unanswered.take() {
        return why;
    }
    Unanswered::Own(match error.downcast_ref::<wasmtime::Trap>() {
        Some(wasmtime::Trap::Interrupt) => FaultKind::Slow(limits.deadline),
        // A guest that is refused memory aborts.
        _ if state.memory_refused => FaultKind::Memory(limits.memory),
        _ if error.chain().any(|cause| cause.to_string().contains(HANDED_OVER)) => {
            FaultKind::OutputSize(handed_over(limits), limits.output)
        }
        Some(trap) => FaultKind::Trap(trap.to_string()),
        None => FaultKind::Trap(format!("{error:#}")),
    })
}
