//! The threads that translate. They are not the runtime's, so that no stream waits for a computation of another.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Stack of a thread. A translation nests calls of guests, each with a stack of its own within this one; the address space is
/// reserved, memory is used only as deep as it goes.
const STACK: usize = 64 << 20;

/// A push stands in the queue as if it had come later by so many times what the stream's last one took.
const PATIENCE: u32 = 4;
/// The most that it comes later, so that nobody waits for ever.
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// A small number of threads with a fair queue.
///
/// Fair: a stream has one job at a time, jobs run in the order in which they came, and the two lanes take turns, so that
/// neither a wave of pushes nor a wave of new proxies makes the other wait for all of it. Within a wave of pushes those that
/// took little the last time come first: a proxy with a slow plugin makes itself wait, and not the others.
pub(crate) struct Pool {
    queue: Arc<Queue>,
}

/// What a job is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Somebody waits for an answer.
    Request,
    /// A new snapshot, for a stream whose last took this long.
    Push(Duration),
}

/// A job panicked; the text is the panic's message. Nobody but the job's owner notices.
#[derive(Debug)]
pub(crate) struct Panicked(pub(crate) String);

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    has_work: Condvar,
}

#[derive(Default)]
struct State {
    requests: VecDeque<Task>,
    pushes: BinaryHeap<Reverse<Waiting>>,
    n_pushes: u64,
    was_request: bool,
    is_closed: bool,
}

/// A push in the queue.
struct Waiting {
    /// When it is its turn, and which of those of one moment it is.
    turn: (Instant, u64),
    task: Task,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.turn == other.turn
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.turn.cmp(&other.turn)
    }
}

impl Pool {
    /// Starts the threads; 0 means one per core.
    pub(crate) fn new(n_workers: usize) -> Self {
        let n_workers = match n_workers {
            0 => thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let queue = Arc::new(Queue::default());
        for n in 0..n_workers {
            let queue = queue.clone();
            let builder = thread::Builder::new().name(format!("translate-{n}")).stack_size(STACK);
            if let Err(error) = builder.spawn(move || work(&queue)) {
                // With one thread less things are slower, with none they stand still, which is what the log is for.
                tracing::error!(%error, "cannot start a translation thread");
            }
        }
        Pool { queue }
    }

    /// Queues a job. The receiver's own error means that the pool was closed before the job ran.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<Result<T, Panicked>> {
        let (result_tx, result_rx) = oneshot::channel();
        let task: Task = Box::new(move || {
            let result = catch_unwind(AssertUnwindSafe(job)).map_err(|panic| Panicked(message(&*panic)));
            // Nobody may be there any more to hear it.
            let _ = result_tx.send(result);
        });
        let mut state = self.queue.state.lock();
        match lane {
            Lane::Request => state.requests.push_back(task),
            Lane::Push(took) => {
                let patience = took.saturating_mul(PATIENCE).min(MOST_PATIENCE);
                state.n_pushes += 1;
                let turn = (Instant::now() + patience, state.n_pushes);
                state.pushes.push(Reverse(Waiting { turn, task }));
            }
        }
        drop(state);
        self.queue.has_work.notify_one();
        result_rx
    }
}

impl Drop for Pool {
    /// Lets the threads end after the job that they have; they are not waited for, because one of them may be who drops.
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.is_closed = true;
        let dropped = (std::mem::take(&mut state.requests), std::mem::take(&mut state.pushes));
        drop(state);
        drop(dropped);
        self.queue.has_work.notify_all();
    }
}

fn work(queue: &Queue) {
    loop {
        let mut state = queue.state.lock();
        let task = loop {
            if state.is_closed {
                return;
            }
            if let Some(task) = state.next() {
                break task;
            }
            queue.has_work.wait(&mut state);
        };
        drop(state);
        task();
    }
}

impl State {
    fn next(&mut self) -> Option<Task> {
        let request_first = !self.was_request || self.pushes.is_empty();
        let task = match request_first {
            true => self.requests.pop_front(),
            false => None,
        };
        self.was_request = task.is_some();
        task.or_else(|| self.pushes.pop().map(|Reverse(waiting)| waiting.task))
    }
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_stays_in_its_job() {
        let pool = Pool::new(1);
        let bad = pool.run(Lane::Request, || -> u32 { panic!("job {} is bad", 7) });
        let good = pool.run(Lane::Request, || 42);
        assert_eq!(bad.await.unwrap().unwrap_err().0, "job 7 is bad");
        assert_eq!(good.await.unwrap().unwrap(), 42);
    }

    #[tokio::test]
    async fn lanes_take_turns_and_what_took_long_comes_after_the_rest_of_its_wave() {
        let pool = Pool::new(1);
        let (go_tx, go_rx) = std::sync::mpsc::channel::<()>();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (started_tx, started_rx) = oneshot::channel();
        const QUICK: Lane = Lane::Push(Duration::ZERO);
        let gate = pool.run(QUICK, move || {
            started_tx.send(()).unwrap();
            go_rx.recv()
        });
        started_rx.await.unwrap();
        let note = |lane, name: &'static str| {
            let order = order.clone();
            pool.run(lane, move || order.lock().push(name))
        };
        let jobs = [
            note(Lane::Push(Duration::from_millis(400)), "slow"),
            note(QUICK, "p1"),
            note(QUICK, "p2"),
            note(Lane::Push(Duration::from_secs(3600)), "slowest"),
            note(QUICK, "p3"),
            note(Lane::Request, "r1"),
            note(Lane::Request, "r2"),
        ];
        go_tx.send(()).unwrap();
        gate.await.unwrap().unwrap().unwrap();
        for job in jobs {
            job.await.unwrap().unwrap();
        }
        assert_eq!(*order.lock(), ["r1", "p1", "r2", "p2", "p3", "slow", "slowest"]);
    }

    #[tokio::test]
    async fn a_closed_pool_says_so() {
        let pool = Pool::new(1);
        let (go_tx, go_rx) = std::sync::mpsc::channel::<()>();
        let running = pool.run(Lane::Push(Duration::ZERO), move || go_rx.recv().is_ok());
        let never = pool.run(Lane::Push(Duration::ZERO), || ());
        drop(pool);
        drop(go_tx);
        // Whether it was started before the pool closed is a race; that it ends is not.
        let _ = running.await;
        assert!(never.await.is_err());
    }
}
