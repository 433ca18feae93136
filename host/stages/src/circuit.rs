//! What plugins may cost others: a plugin whose runs come to nothing is left alone for a while, and a tenant's plugins have a share
//! of the time.
//!
//! ```text
//!             time lost ▶ calm           time lost ▶ trip
//!   closed ────────────────▶ aside ────────────────────────▶ open ──pause──▶ one call, aside
//!     ▲  calls are made       │  calls are made one after     │  none are      │      │
//!     │  when needed          │  the other, nobody waits      │  made          │      └ it faults: open, twice the pause
//!     └───────time passes─────┘                               └──it succeeds: closed, what waited is made
//! ```
//!
//! Only lost *time* counts: a plugin that faults quickly costs little, each fault is remembered with its inputs, and what it does
//! elsewhere must not depend on the order in which fragments are looked at. So what is done here depends on the clock, as deadlines
//! do, and like them it never makes an output that is remembered: what went out without a plugin is made anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::calls::CallId;
use crate::engine::{HookTable, Hooked};
use crate::proxies::ProxyState;

/// What plugins may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Time that a plugin's runs may lose, faulting, to those who wait for them, before they are made aside.
    pub calm: Duration,
    /// Time that they may lose in all before its circuit opens. Losses are forgotten at the rate of a hundredth of the time that
    /// passes.
    pub trip: Duration,
    /// How long a circuit stays open at first; each time that it opens again soon, twice as long.
    pub pause: Duration,
    /// How long at most.
    pub longest_pause: Duration,
    /// The share of one core that the plugins of one tenant have, all together; none for no bound. The mesh's own plugins have none.
    pub share: Option<f64>,
    /// How much of that time may be used up at once.
    pub burst: Duration,
    /// What may be remembered for the plugins of one tenant, all together, bytes.
    pub kept: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            calm: Duration::from_millis(500),
            trip: Duration::from_secs(5),
            pause: Duration::from_secs(2),
            longest_pause: Duration::from_secs(300),
            share: None,
            burst: Duration::from_millis(500),
            kept: 128 << 20,
        }
    }
}

/// Part of the time that passes at which losses are forgotten.
const FORGOTTEN: f64 = 0.01;

/// How long it may take until somebody is told of a call that was made aside.
const TOLD: Duration = Duration::from_secs(1);

/// How long it is remembered what a tenant without plugins used.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// An amount of time that goes down by itself.
#[derive(Clone, Copy, Debug)]
struct Leaking {
    seconds: f64,
    at: Instant,
}

impl Leaking {
    fn new(at: Instant) -> Leaking {
        Leaking { seconds: 0.0, at }
    }

    fn now(&self, now: Instant, rate: f64) -> f64 {
        (self.seconds - now.saturating_duration_since(self.at).as_secs_f64() * rate).max(0.0)
    }

    fn add(&mut self, now: Instant, rate: f64, more: Duration) {
        *self = Leaking { seconds: self.now(now, rate) + more.as_secs_f64(), at: now };
    }
}

/// What is a tenant's: the time that its plugins used of late, beyond their share, and what is remembered for them.
pub(crate) struct Account {
    used: Mutex<Leaking>,
    kept: AtomicUsize,
}

impl Account {
    fn new(now: Instant) -> Arc<Account> {
        Arc::new(Account { used: Mutex::new(Leaking::new(now)), kept: AtomicUsize::new(0) })
    }

    fn wait(&self, budget: &Budget, now: Instant) -> Option<Duration> {
        let share = budget.share?;
        let over = self.used.lock().now(now, share) - budget.burst.as_secs_f64();
        (over > 0.0).then(|| Duration::from_secs_f64((over / share).min(60.0)))
    }
}

/// How a plugin's calls are made at present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conduct {
    /// When they are needed.
    #[default]
    Closed,
    /// One after the other, and nobody waits for them: because its runs lost time, or its tenant's share is used up.
    Aside,
    /// Not at all, for a while.
    Open,
}

impl Conduct {
    /// As status says it.
    pub fn name(self) -> &'static str {
        match self {
            Conduct::Closed => "closed",
            Conduct::Aside => "aside",
            Conduct::Open => "open",
        }
    }
}

/// How it stands with a plugin, for status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// How its calls are made.
    pub conduct: Conduct,
    /// Why they are not made when they are needed.
    pub why: Option<String>,
    /// Of an open circuit: when it is tried again.
    pub again_in: Option<Duration>,
    /// Calls that wait to be made.
    pub waiting: usize,
    /// What is remembered for it, bytes.
    pub kept: usize,
    /// How often its circuit opened.
    pub trips: u64,
}

/// Why a call is not made now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PutOff {
    /// The circuit is open.
    Open(String),
    /// Its runs lost time.
    Slow,
    /// The tenant's share is used up.
    Share,
    /// Too much is remembered for the tenant.
    Memory,
}

impl PutOff {
    /// Value of the metric label `reason`.
    pub fn label(&self) -> &'static str {
        match self {
            PutOff::Open(_) => "circuit",
            PutOff::Slow => "slow",
            PutOff::Share => "share",
            PutOff::Memory => "memory",
        }
    }
}

impl std::fmt::Display for PutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PutOff::Open(why) => write!(f, "its circuit is open, because {why}"),
            PutOff::Slow => f.write_str("its runs lost time of late, so that nobody waits for them"),
            PutOff::Share => f.write_str("the plugins of its namespace have used up their share of the time"),
            PutOff::Memory => f.write_str("what is remembered for the plugins of its namespace is more than may be"),
        }
    }
}

/// One version of a plugin on certain terms.
pub(crate) struct Circuit {
    /// The plugin's name.
    pub plugin: String,
    account: Option<Arc<Account>>,
    kept: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// Time lost to those who waited, and in all.
    waited: Leaking,
    lost: Leaking,
    open: Option<Open>,
    /// How long the circuit was open the last time, and when it opened.
    last: Option<(Duration, Instant)>,
    trips: u64,
    /// Calls to be made, each with a proxy for which.
    waiting: BTreeMap<CallId, Arc<ProxyState>>,
    /// One of them is being made.
    is_busy: bool,
    /// Calls that were made, of which nobody was told yet, and when somebody was the last time.
    made: Vec<CallId>,
    told: Instant,
}

struct Open {
    until: Instant,
    why: String,
}

/// What is to be done next aside.
pub(crate) enum Next {
    /// This call, which may tell whether the circuit can close.
    Call(CallId, Arc<ProxyState>),
    /// Somebody is to be told that these calls were made.
    Tell(Vec<CallId>),
    /// Nothing before this time has passed.
    Wait(Duration),
    /// Nothing.
    Nothing,
}

impl Circuit {
    fn new(plugin: &str, account: Option<Arc<Account>>, now: Instant) -> Circuit {
        let state = State {
            waited: Leaking::new(now),
            lost: Leaking::new(now),
            open: None,
            last: None,
            trips: 0,
            waiting: BTreeMap::new(),
            is_busy: false,
            made: Vec::new(),
            told: now,
        };
        Circuit { plugin: plugin.to_owned(), account, kept: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    fn hindrance(&self, state: &State, budget: &Budget, now: Instant) -> Option<PutOff> {
        if let Some(open) = &state.open {
            return Some(PutOff::Open(open.why.clone()));
        }
        if self.is_full(budget) {
            return Some(PutOff::Memory);
        }
        if state.waited.now(now, FORGOTTEN) > budget.calm.as_secs_f64() {
            return Some(PutOff::Slow);
        }
        self.account.as_ref()?.wait(budget, now).map(|_| PutOff::Share)
    }

    /// May a call be made now, while somebody waits for it? If not it waits from here on.
    pub fn admit(&self, budget: &Budget, call: CallId, proxy: &Arc<ProxyState>, now: Instant) -> Result<(), PutOff> {
        let mut state = self.state.lock();
        match self.hindrance(&state, budget, now) {
            None => Ok(()),
            // It will not be made aside either.
            Some(PutOff::Memory) => Err(PutOff::Memory),
            Some(why) => {
                state.waiting.insert(call, proxy.clone());
                Err(why)
            }
        }
    }

    fn is_full(&self, budget: &Budget) -> bool {
        self.account.as_ref().is_some_and(|account| account.kept.load(Ordering::Relaxed) > budget.kept)
    }

    /// So much is remembered for it, until what this gives back is dropped.
    pub fn keeps(self: &Arc<Self>, bytes: usize) -> Kept {
        let kept = Kept { circuit: self.clone(), bytes };
        for counter in kept.counters() {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        kept
    }

    /// A call waits to be made again, with more time.
    pub fn wait(&self, call: CallId, proxy: &Arc<ProxyState>) {
        self.state.lock().waiting.insert(call, proxy.clone());
    }

    /// A run was over.
    pub fn spent(&self, budget: &Budget, took: Duration, now: Instant) {
        if let (Some(account), Some(share)) = (&self.account, budget.share) {
            account.used.lock().add(now, share, took);
        }
    }

    /// A run came to nothing, and took this long; `somebody` waited for it. Says why when the circuit opened.
    pub fn lost(&self, budget: &Budget, took: Duration, somebody: bool, what: &str, now: Instant) -> Option<String> {
        let mut state = self.state.lock();
        if somebody {
            state.waited.add(now, FORGOTTEN, took);
        }
        state.lost.add(now, FORGOTTEN, took);
        let is_lost = state.lost.now(now, FORGOTTEN) > budget.trip.as_secs_f64();
        if state.open.is_none() && !is_lost {
            return None;
        }
        let pause = match state.last {
            // It opened not long ago.
            Some((pause, at)) if now.saturating_duration_since(at) < pause * 10 => {
                (pause * 2).min(budget.longest_pause)
            }
            _ => budget.pause,
        };
        let seconds = state.lost.now(now, FORGOTTEN);
        let why = format!("its runs lost {seconds:.1} s, the last one: it {what}");
        state.open = Some(Open { until: now + pause, why: why.clone() });
        state.last = Some((pause, now));
        state.trips += 1;
        Some(why)
    }

    /// A run succeeded. True when the circuit was open and is closed now.
    pub fn succeeded(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.open.take().is_none() {
            return false;
        }
        (state.waited, state.lost) = (Leaking::new(now), Leaking::new(now));
        true
    }

    /// What is to be made aside next. Whoever gets a call says [`done`](Circuit::done) after it.
    fn next(&self, budget: &Budget, now: Instant) -> Next {
        let mut state = self.state.lock();
        if self.is_full(budget) {
            // They come again when somebody needs them.
            state.waiting.clear();
        }
        if !state.is_busy && state.waiting.is_empty() && !state.made.is_empty() {
            return Next::Tell(std::mem::take(&mut state.made));
        }
        if state.is_busy || state.waiting.is_empty() {
            return Next::Nothing;
        }
        let open = state.open.as_ref().and_then(|open| open.until.checked_duration_since(now));
        let wait = open.or_else(|| self.account.as_ref()?.wait(budget, now));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            return match std::mem::take(&mut state.made) {
                made if made.is_empty() => Next::Wait(wait),
                made => Next::Tell(made),
            };
        }
        match state.waiting.pop_first() {
            Some((call, proxy)) => {
                state.is_busy = true;
                Next::Call(call, proxy)
            }
            None => Next::Nothing,
        }
    }

    /// These calls were made aside. Returns those of which it is time to tell: not of each by itself while there is more to do, since
    /// every proxy looks again.
    pub fn made(&self, budget: &Budget, calls: Vec<CallId>, now: Instant) -> Vec<CallId> {
        let mut state = self.state.lock();
        state.made.extend(calls);
        let goes_on = !state.waiting.is_empty()
            && state.open.is_none()
            && self.account.as_ref().is_none_or(|account| account.wait(budget, now).is_none());
        if goes_on && now.saturating_duration_since(state.told) < TOLD {
            return Vec::new();
        }
        state.told = now;
        std::mem::take(&mut state.made)
    }

    /// A call that was made aside is over.
    pub fn done(&self) {
        self.state.lock().is_busy = false;
    }

    /// The calls that wait, which do so no longer.
    pub fn release(&self) -> Vec<CallId> {
        std::mem::take(&mut self.state.lock().waiting).into_keys().collect()
    }

    fn standing(&self, budget: &Budget, now: Instant) -> Standing {
        let state = self.state.lock();
        let hindrance = self.hindrance(&state, budget, now);
        Standing {
            conduct: match &hindrance {
                None if state.waiting.is_empty() && !state.is_busy => Conduct::Closed,
                Some(PutOff::Open(_)) => Conduct::Open,
                _ => Conduct::Aside,
            },
            why: hindrance.map(|why| why.to_string()),
            again_in: state.open.as_ref().map(|open| open.until.saturating_duration_since(now)),
            waiting: state.waiting.len(),
            kept: self.kept.load(Ordering::Relaxed),
            trips: state.trips,
        }
    }

    /// Is something being made aside, or about to be?
    fn is_at_work(&self) -> bool {
        let state = self.state.lock();
        state.is_busy || !state.made.is_empty() || !state.waiting.is_empty() && state.open.is_none()
    }
}

/// Something that is remembered for a plugin.
pub(crate) struct Kept {
    circuit: Arc<Circuit>,
    bytes: usize,
}

impl Kept {
    fn counters(&self) -> impl Iterator<Item = &AtomicUsize> {
        std::iter::once(&self.circuit.kept).chain(self.circuit.account.as_ref().map(|account| &account.kept))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for counter in self.counters() {
            counter.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// The plugin, its code and its terms: what a circuit is about. All hook points of a plugin have one.
fn version(id: &str) -> &str {
    id.rsplit_once(':').map_or(id, |(version, _hook)| version)
}

/// The circuits of the plugins in force.
#[derive(Default)]
pub(crate) struct Circuits(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// By a plugin's id at a hook point.
    by_id: FxHashMap<Arc<str>, Arc<Circuit>>,
    /// In a fixed order, for taking turns.
    all: Vec<(String, Arc<Circuit>)>,
    accounts: BTreeMap<String, Arc<Account>>,
    turn: usize,
}

impl Circuits {
    /// Follows the table of plugins: new versions start with a clean slate, what is gone is forgotten.
    pub fn follow(&self, hooks: &HookTable, now: Instant) {
        let mut table = self.0.lock();
        let mut next = Table { turn: table.turn, ..Table::default() };
        let mut hooked: Vec<&Hooked> = hooks.values().flatten().collect();
        hooked.sort_by(|a, b| a.id.cmp(&b.id));
        for hooked in hooked {
            let version = version(&hooked.id);
            let known = next.all.iter().chain(&table.all).find(|(known, _)| known == version);
            let circuit = known.map(|(_, circuit)| circuit.clone()).unwrap_or_else(|| {
                let tenant = hooked.terms.as_ref().and_then(|terms| terms.tenant());
                let account = tenant.map(|tenant| {
                    let known = next.accounts.get(tenant).or_else(|| table.accounts.get(tenant)).cloned();
                    known.unwrap_or_else(|| Account::new(now))
                });
                if let (Some(tenant), Some(account)) = (tenant, &account) {
                    next.accounts.insert(tenant.to_owned(), account.clone());
                }
                Arc::new(Circuit::new(hooked.guest.name(), account, now))
            });
            if !next.all.iter().any(|(known, _)| known == version) {
                next.all.push((version.to_owned(), circuit.clone()));
            }
            next.by_id.insert(hooked.id.clone(), circuit);
        }
        // A tenant that takes its plugins away and puts others there has used what it has used.
        for (tenant, account) in &table.accounts {
            next.accounts.entry(tenant.clone()).or_insert_with(|| account.clone());
        }
        let is_recent = |account: &Account| now.saturating_duration_since(account.used.lock().at) < REMEMBERED;
        // Two references are tables', a third is a circuit's.
        next.accounts.retain(|_, account| Arc::strong_count(account) > 2 || is_recent(account));
        *table = next;
    }

    /// The circuit of a plugin at a hook point; none when it is not in force any more.
    pub fn of(&self, id: &str) -> Option<Arc<Circuit>> {
        self.0.lock().by_id.get(id).cloned()
    }

    /// The next call to be made aside, in turn; or how long there is none; or that there is none at all.
    pub fn next(&self, budget: &Budget, now: Instant) -> (Next, Option<Arc<Circuit>>) {
        let mut table = self.0.lock();
        let (n, turn) = (table.all.len(), table.turn);
        let mut least: Option<Duration> = None;
        for step in 0..n {
            let at = (turn + step) % n;
            match table.all[at].1.next(budget, now) {
                call @ (Next::Call(..) | Next::Tell(_)) => {
                    let circuit = table.all[at].1.clone();
                    table.turn = at + 1;
                    return (call, Some(circuit));
                }
                Next::Wait(wait) => least = Some(least.map_or(wait, |least| least.min(wait))),
                Next::Nothing => {}
            }
        }
        (least.map_or(Next::Nothing, Next::Wait), None)
    }

    /// Is something being made aside, or about to be?
    pub fn are_at_work(&self) -> bool {
        self.0.lock().all.iter().any(|(_, circuit)| circuit.is_at_work())
    }

    /// How it stands with each plugin, by name.
    pub fn standings(&self, budget: &Budget, now: Instant) -> BTreeMap<String, Standing> {
        let table = self.0.lock();
        table.all.iter().map(|(_, circuit)| (circuit.plugin.clone(), circuit.standing(budget, now))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trysail_model::Proxy;

    const BUDGET: Budget = Budget {
        calm: Duration::from_secs(1),
        trip: Duration::from_secs(4),
        pause: Duration::from_secs(10),
        longest_pause: Duration::from_secs(30),
        share: Some(0.25),
        burst: Duration::from_secs(1),
        kept: 1000,
    };

    fn proxy() -> Arc<ProxyState> {
        let node = "sidecar~10.0.0.1~p.n~n.svc.cluster.local";
        let proxy = Proxy::from_node(node, Default::default(), Default::default()).expect("it is one");
        Arc::new(ProxyState::new(Arc::new(proxy)))
    }

    fn circuit(now: Instant) -> Circuit {
        Circuit::new("p", Some(Account::new(now)), now)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn who_loses_time_is_made_to_wait_and_then_left_alone() {
        let now = Instant::now();
        let (circuit, proxy) = (circuit(now), proxy());
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Ok(()));
        assert_eq!(circuit.lost(&BUDGET, seconds(2), true, "trapped", now), None);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Err(PutOff::Slow), "it lost more than is borne calmly");
        assert!(matches!(circuit.next(&BUDGET, now), Next::Call(1, _)));
        assert!(matches!(circuit.next(&BUDGET, now), Next::Nothing), "one at a time");
        let why = circuit.lost(&BUDGET, seconds(3), false, "trapped", now).expect("it lost too much");
        assert!(why.contains("5.0 s") && why.contains("trapped"), "{why}");
        circuit.done();
        assert!(matches!(circuit.admit(&BUDGET, 2, &proxy, now), Err(PutOff::Open(_))));
        assert!(matches!(circuit.next(&BUDGET, now), Next::Wait(wait) if wait == seconds(10)));
        let standing = circuit.standing(&BUDGET, now);
        assert_eq!((standing.conduct, standing.waiting, standing.trips), (Conduct::Open, 1, 1));
        assert!(!circuit.is_at_work());
        // Tried after the pause, it faults again, and the pause is longer; then it succeeds, and what waits may be made.
        let later = now + seconds(10);
        assert!(matches!(circuit.next(&BUDGET, later), Next::Call(2, _)));
        assert!(circuit.lost(&BUDGET, seconds(0), false, "trapped", later).is_some(), "open as it was");
        circuit.done();
        circuit.wait(3, &proxy);
        assert!(matches!(circuit.next(&BUDGET, later), Next::Wait(wait) if wait == seconds(20)));
        let last = later + seconds(20);
        assert!(matches!(circuit.next(&BUDGET, last), Next::Call(3, _)));
        assert!(circuit.succeeded(last) && !circuit.succeeded(last));
        circuit.done();
        assert_eq!(circuit.admit(&BUDGET, 4, &proxy, last), Ok(()));
        assert_eq!(circuit.standing(&BUDGET, last).conduct, Conduct::Closed);
    }

    #[test]
    fn what_was_lost_is_forgotten_in_time() {
        let now = Instant::now();
        let (circuit, proxy) = (circuit(now), proxy());
        circuit.lost(&BUDGET, seconds(2), true, "trapped", now);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Err(PutOff::Slow));
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now + seconds(101)), Ok(()));
    }

    #[test]
    fn a_tenant_has_its_share_and_no_more() {
        let now = Instant::now();
        let (circuit, proxy) = (circuit(now), proxy());
        circuit.spent(&BUDGET, seconds(1), now);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Ok(()), "as much at once as may be");
        circuit.spent(&BUDGET, seconds(1), now);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Err(PutOff::Share));
        assert!(matches!(circuit.next(&BUDGET, now), Next::Wait(wait) if wait == seconds(4)), "a quarter of the time");
        assert!(matches!(circuit.next(&BUDGET, now + seconds(4)), Next::Call(1, _)));
        let without = Budget { share: None, ..BUDGET };
        assert_eq!(circuit.admit(&without, 1, &proxy, now), Ok(()));
    }

    #[test]
    fn a_tenant_has_what_is_remembered_for_it_bounded() {
        let now = Instant::now();
        let (circuit, proxy) = (Arc::new(circuit(now)), proxy());
        let first = circuit.keeps(600);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Ok(()));
        let second = circuit.keeps(600);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Err(PutOff::Memory));
        assert_eq!((circuit.standing(&BUDGET, now).kept, circuit.standing(&BUDGET, now).waiting), (1200, 0));
        drop(first);
        assert_eq!(circuit.admit(&BUDGET, 1, &proxy, now), Ok(()));
        drop(second);
        assert_eq!(circuit.standing(&BUDGET, now).kept, 0);
    }

    #[test]
    fn one_version_is_one_circuit_at_all_its_hook_points() {
        assert_eq!(version("n/p@abc:def:clusters"), version("n/p@abc:def:listeners"));
        assert_ne!(version("n/p@abc:def:clusters"), version("n/p@abc:123:clusters"));
        assert_eq!(version("p@abc"), "p@abc");
    }
}
