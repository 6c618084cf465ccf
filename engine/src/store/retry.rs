//! Trying a request again: with pauses that grow, until an answer or a deadline.
//!
//! Only idempotent requests may be tried again blindly. A put-if-absent whose reply was lost may have happened: who
//! repeats it compares what is there with what it sent.

use std::time::Duration;

use tokio::time::Instant;

use super::StoreError;
use crate::env::Env;

/// The first pause between two attempts.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(5);

/// A pause that grows from attempt to attempt, with jitter, so that hosts do not retry in step.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// Waits before the next attempt.
    pub async fn pause(&mut self, env: &Env) {
        let mut byte = [0; 1];
        env.entropy.fill(&mut byte);
        tokio::time::sleep(self.next.mul_f64(0.5 + f64::from(byte[0]) / 512.0)).await;
        self.next = (self.next * 2).min(LONGEST);
    }
}

/// Tries an idempotent request until it is answered or the deadline has passed.
///
/// No attempt starts after the deadline; one that is under way then ends by its own time limit.
pub async fn retry<T, F>(
    env: &Env,
    deadline: Instant,
    mut attempt: impl FnMut() -> F,
) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut backoff = Backoff::default();
    loop {
        match attempt().await {
            Err(error @ StoreError::Unavailable { .. }) => {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                backoff.pause(env).await;
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> StoreError {
        StoreError::Unavailable { key: "k".into(), reason: "busy".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_store_is_asked_until_it_answers() {
        let mut left = 5;
        let deadline = Instant::now() + Duration::from_secs(60);
        let outcome = retry(&Env::system(), deadline, || {
            left -= 1;
            let answer = if left == 0 { Ok(7) } else { Err(busy()) };
            async { answer }
        })
        .await;
        assert_eq!(outcome.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_it() {
        let started = Instant::now();
        let limit = Duration::from_secs(20);
        let outcome = retry::<(), _>(&Env::system(), started + limit, || async { Err(busy()) }).await;
        assert!(matches!(outcome, Err(StoreError::Unavailable { .. })));
        assert!(started.elapsed() < limit + LONGEST);
    }

    #[tokio::test]
    async fn a_refusal_is_final() {
        let mut asked = 0;
        let outcome = retry::<(), _>(&Env::system(), Instant::now() + LONGEST, || {
            asked += 1;
            async { Err(StoreError::Full { key: "k".into() }) }
        })
        .await;
        assert!(matches!(outcome, Err(StoreError::Full { .. })));
        assert_eq!(asked, 1);
    }
}
