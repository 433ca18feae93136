//! The threads that translate. They are not the runtime's, so that no stream waits for a computation of another.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// Stack of a thread. A translation nests calls of guests, each with a stack of its own within this one; the address space is
/// reserved, memory is used only as deep as it goes.
const STACK: usize = 64 << 20;

/// A small number of threads with a fair queue.
///
/// Fair: a stream has one job at a time, jobs run in the order in which they came, and the two lanes take turns, so that
/// neither a wave of pushes nor a wave of new proxies makes the other wait for all of it.
pub(crate) struct Pool {
    queue: Arc<Queue>,
}

/// What a job is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// Somebody waits for an answer.
    Request,
    /// A new snapshot.
    Push,
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
    pushes: VecDeque<Task>,
    was_request: bool,
    is_closed: bool,
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
            Lane::Push => state.pushes.push_back(task),
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
        task.or_else(|| self.pushes.pop_front())
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
    async fn lanes_take_turns_and_keep_their_order() {
        let pool = Pool::new(1);
        let (go_tx, go_rx) = std::sync::mpsc::channel::<()>();
        let order = Arc::new(Mutex::new(Vec::new()));
        let (started_tx, started_rx) = oneshot::channel();
        let gate = pool.run(Lane::Push, move || {
            started_tx.send(()).unwrap();
            go_rx.recv()
        });
        started_rx.await.unwrap();
        let note = |lane, name: &'static str| {
            let order = order.clone();
            pool.run(lane, move || order.lock().push(name))
        };
        let jobs = [
            note(Lane::Push, "p1"),
            note(Lane::Push, "p2"),
            note(Lane::Push, "p3"),
            note(Lane::Request, "r1"),
            note(Lane::Request, "r2"),
        ];
        go_tx.send(()).unwrap();
        gate.await.unwrap().unwrap().unwrap();
        for job in jobs {
            job.await.unwrap().unwrap();
        }
        assert_eq!(*order.lock(), ["r1", "p1", "r2", "p2", "p3"]);
    }

    #[tokio::test]
    async fn a_closed_pool_says_so() {
        let pool = Pool::new(1);
        let (go_tx, go_rx) = std::sync::mpsc::channel::<()>();
        let running = pool.run(Lane::Push, move || go_rx.recv().is_ok());
        let never = pool.run(Lane::Push, || ());
        drop(pool);
        drop(go_tx);
        // Whether it was started before the pool closed is a race; that it ends is not.
        let _ = running.await;
        assert!(never.await.is_err());
    }
}
