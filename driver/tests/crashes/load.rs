//! Two volumes of a node under load: fio verifies on one, and the ledger books what is acknowledged on the other.

use std::fmt;
use std::time::Duration;

use holdfast_csi_proto::csi::Volume;

use crate::fio::{Fio, Seen};
use crate::ledger::{Ledger, Writers};
use crate::site::{Node, Site, block};

/// The longest that one request may take. Without other load it is a fraction of a second.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// The load, while it runs.
pub struct Load {
    volumes: [Volume; 2],
    fio: Fio,
    writers: Writers,
    ledger: Ledger,
}

/// The load, when it has ended without an error.
pub struct Ended {
    volumes: [Volume; 2],
    /// What fio saw.
    pub seen: Seen,
    /// What was acknowledged.
    pub ledger: Ledger,
}

impl Load {
    /// Publishes two new volumes on `node`, that of fio of this size, and begins.
    pub async fn start(site: &mut Site, node: &mut Node, loaded_bytes: i64) -> Self {
        let loaded = site.create_sized("loaded", loaded_bytes).await;
        let booked = site.create_sized("booked", Ledger::BYTES as i64).await;
        let volumes = [loaded, booked];
        let mut devices = Vec::new();
        for volume in &volumes {
            let context = site.attach(volume, node, &block()).await.unwrap();
            devices.push(node.publish(volume, &context, &block()).await.unwrap());
        }
        let fio = Fio::start(&devices[0]);
        let ledger = Ledger::new(&devices[1]);
        let writers = ledger.write();
        Self { volumes, fio, writers, ledger }
    }

    /// Whether nothing has met an error.
    pub fn goes_on(&self) -> bool {
        self.fio.goes_on() && self.writers.go_on()
    }

    /// Ends it; fails if anything has met an error.
    pub fn end(self) -> Ended {
        let outcomes = self.writers.end();
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        Ended { volumes: self.volumes, seen: self.fio.end(), ledger: self.ledger }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { writes, verifying_reads, stall } = self.seen;
        let fsyncs = self.ledger.acknowledged();
        write!(f, "fio: {writes} writes, {verifying_reads} verifying reads; ")?;
        write!(f, "ledger: {fsyncs} fsyncs; longest stall {stall:?}")
    }
}

impl Ended {
    /// Nothing that was acknowledged is lost, fio verified more than so much, and nothing took too long.
    pub fn check(&self, verifying_reads: u64) {
        self.ledger.check();
        assert!(self.seen.verifying_reads > verifying_reads, "fio verified too little");
        assert!(self.seen.stall < STALL_LIMIT, "the longest stall was {:?}", self.seen.stall);
    }

    /// Detaches the volumes, and checks that nothing of what was acknowledged was in memory only.
    pub async fn detach_and_check(self, site: &mut Site, node: &mut Node) {
        for volume in &self.volumes {
            node.unpublish(volume).await.unwrap();
            site.detach(volume, node).await;
        }
        let booked = &self.volumes[1];
        let context = site.attach(booked, node, &block()).await.unwrap();
        node.publish(booked, &context, &block()).await.unwrap();
        self.ledger.check();
        node.unpublish(booked).await.unwrap();
    }
}
