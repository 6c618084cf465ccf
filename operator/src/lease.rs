//! Leader election by a `coordination.k8s.io/v1` Lease.
//!
//! # Guarantees
//! - A replica takes a lease over only after it has itself seen the lease unchanged for the holder's whole lease
//!   duration, by its own monotonic clock: clocks of different nodes are never compared.
//! - Every write carries the resource version that was read, so of two that try at once one wins.
//! - A leader that could not renew for the renewal deadline, which is shorter than the lease duration, steps down
//!   before another can take over, whatever the API server does.
//!
//! # Assumptions
//! Monotonic clocks of two nodes run at nearly the same speed. A lease is no fence: a request sent before stepping
//! down may arrive later. Everything the leader does can therefore be repeated by another (deterministic names,
//! idempotent writes).
//!
//! # Crash behaviour
//! A leader that dies leaves the lease to run out; another leads within the lease duration and one retry period.
//! One that ends in good order gives the lease up at once.

use std::time::{Duration, Instant};

use holdfast_api::jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, ResourceExt};

use crate::api;
use crate::error::{Doing, Error};

/// The times of an election; `retry < renew_deadline < duration`.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long others wait for a silent leader.
    pub duration: Duration,
    /// How long a leader tries to renew before it steps down.
    pub renew_deadline: Duration,
    /// Between two tries.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// What a candidate has seen of the lease, and since when on its own clock.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    since: Instant,
    duration: Duration,
}

/// One replica's part in the election.
pub struct Candidate {
    leases: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    seen: Option<Seen>,
}

impl Candidate {
    /// A candidate called `identity` for the lease `name`.
    pub fn new(leases: Api<Lease>, name: &str, identity: &str, timing: Timing) -> Self {
        Self { leases, name: name.to_owned(), identity: identity.to_owned(), timing, seen: None }
    }

    /// One try to take or renew the lease. Whether this replica holds it now.
    pub async fn turn(&mut self, now: Instant) -> Result<bool, Error> {
        let Some(lease) = api::get(&self.leases, &self.name).await? else {
            return self.write(None, 0).await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity && !self.has_expired(&holder, &spec, now) {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(holder != self.identity);
        self.write(Some(lease), transitions).await
    }

    /// Notes what is there, and says whether it has been so for the holder's whole lease duration.
    fn has_expired(&mut self, holder: &str, spec: &LeaseSpec, now: Instant) -> bool {
        let declared = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = declared.map_or(self.timing.duration, Duration::from_secs);
        match &self.seen {
            Some(seen) if seen.holder == holder && seen.renewed == spec.renew_time => {
                now.saturating_duration_since(seen.since) > seen.duration
            }
            _ => {
                let renewed = spec.renew_time.clone();
                self.seen = Some(Seen { holder: holder.to_owned(), renewed, since: now, duration });
                false
            }
        }
    }

    async fn write(&mut self, before: Option<Lease>, transitions: i32) -> Result<bool, Error> {
        let now = MicroTime(Timestamp::now());
        let kept = before
            .as_ref()
            .and_then(|lease| lease.spec.as_ref())
            .filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity));
        let acquired = kept.and_then(|spec| spec.acquire_time.clone()).unwrap_or_else(|| now.clone());
        let seconds = i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version: before.as_ref().and_then(ResourceExt::resource_version),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(seconds),
                acquire_time: Some(acquired),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        };
        let written = match before {
            None => self.leases.create(&PostParams::default(), &lease).await,
            Some(_) => self.leases.replace(&self.name, &PostParams::default(), &lease).await,
        };
        match written.doing(|| format!("take Lease {}", self.name)) {
            Ok(_) => {
                self.seen = None;
                Ok(true)
            }
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tries until this replica holds the lease. Calls `turned` after each try.
    pub async fn acquire(&mut self, turned: impl Fn()) {
        loop {
            match tokio::time::timeout(self.timing.renew_deadline, self.turn(Instant::now())).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "election"),
                Err(_) => tracing::warn!("election: the API server does not answer"),
            }
            turned();
            tokio::time::sleep(self.timing.retry).await;
        }
    }

    /// Renews until the lease is lost: taken by another, or not renewed for the renewal deadline.
    pub async fn hold(&mut self, turned: impl Fn()) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.timing.retry).await;
            let started = Instant::now();
            let left = self.timing.renew_deadline.saturating_sub(started.duration_since(renewed));
            if left.is_zero() {
                return;
            }
            match tokio::time::timeout(left, self.turn(started)).await {
                // Counted from before the request: the lease may have been written right after it was sent.
                Ok(Ok(true)) => renewed = started,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "renewing the lease"),
                Err(_) => return,
            }
            turned();
        }
    }

    /// Gives the lease up, if this replica holds it, so that another need not wait.
    pub async fn release(&mut self) -> Result<(), Error> {
        let Some(mut lease) = api::get(&self.leases, &self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        match self.leases.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(()),
            Err(error) => Err(error).doing(|| format!("release Lease {}", self.name)),
        }
    }
}
