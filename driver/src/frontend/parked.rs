//! Services that wait.
//!
//! The thread that takes a request polls its service once. What does not end there is woken by whoever has what it waits
//! for, and only then the runtime takes it over: no other thread is woken to find that there is nothing to do yet.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use tokio::runtime::Handle;

/// What is to be done for a request.
pub(super) type Service = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Polls `service` here. If it does not end, it goes on in `runtime` once it is woken.
pub(super) fn begin(mut service: Service, runtime: &Handle) {
    let parked = Arc::new(Parked { runtime: runtime.clone(), state: Mutex::new(State::Begun) });
    let waker = Waker::from(Arc::clone(&parked));
    if service.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
        return;
    }
    let mut state = parked.state();
    if matches!(*state, State::Begun) {
        *state = State::Waits(service);
        return;
    }
    drop(state);
    runtime.spawn(service);
}

struct Parked {
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    /// It is being polled for the first time.
    Begun,
    Waits(Service),
    /// The runtime has it, or will. From its next poll on it is woken otherwise.
    Woken,
}

impl Parked {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        let before = std::mem::replace(&mut *self.state(), State::Woken);
        if let State::Waits(service) = before {
            self.runtime.spawn(service);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    /// Counts how often it is polled until `waits` and `then` have come, and says so.
    fn service(
        waits: oneshot::Receiver<()>,
        then: oneshot::Receiver<()>,
        polls: Arc<AtomicUsize>,
        done: oneshot::Sender<()>,
    ) -> Service {
        let mut work = Box::pin(async move {
            waits.await.unwrap();
            then.await.unwrap();
            done.send(()).unwrap();
        });
        Box::pin(std::future::poll_fn(move |context| {
            polls.fetch_add(1, Ordering::Relaxed);
            work.as_mut().poll(context)
        }))
    }

    #[tokio::test]
    async fn a_service_that_waits_is_polled_when_it_is_woken_and_not_before() {
        let ((one, waits), (two, then), (done, ended)) =
            (oneshot::channel(), oneshot::channel(), oneshot::channel());
        let polls = Arc::new(AtomicUsize::new(0));
        begin(service(waits, then, Arc::clone(&polls), done), &Handle::current());
        tokio::task::yield_now().await;
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        one.send(()).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(polls.load(Ordering::Relaxed), 2);
        two.send(()).unwrap();
        ended.await.unwrap();
        assert_eq!(polls.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_service_that_is_woken_while_it_is_polled_goes_on() {
        let (done, ended) = oneshot::channel();
        let mut done = Some(done);
        let mut first = true;
        let service = std::future::poll_fn(move |context| {
            if std::mem::replace(&mut first, false) {
                context.waker().wake_by_ref();
                return std::task::Poll::Pending;
            }
            done.take().unwrap().send(()).unwrap();
            std::task::Poll::Ready(())
        });
        begin(Box::pin(service), &Handle::current());
        ended.await.unwrap();
    }

    #[test]
    fn one_that_ends_at_once_never_sees_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (done, mut ended) = oneshot::channel();
        begin(Box::pin(async move { done.send(()).unwrap() }), runtime.handle());
        ended.try_recv().unwrap();
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    }
}
