//! Room for what is read ahead of its use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long the streams of a reader count after it has asked for their share.
const RECENT: Duration = Duration::from_secs(10);

/// What all readers that share a cache may have in it, or on its way there, that nobody has read yet. Their streams share
/// it evenly, so that they do not throw out what was read ahead for each other, and what is under way is bounded.
#[derive(Debug)]
pub struct AheadRoom {
    bytes: u64,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    /// How many streams each has, and when it said so.
    streams: BTreeMap<u64, (u64, Instant)>,
    last: u64,
}

impl AheadRoom {
    /// Room for so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { bytes, readers: Mutex::default() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One more reader, of a volume or a snapshot.
    pub fn reader(self: Arc<Self>) -> AheadReader {
        let id = {
            let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
            readers.last += 1;
            readers.last
        };
        AheadReader { room: self, id }
    }
}

/// One of those who share an [`AheadRoom`].
#[derive(Debug)]
pub struct AheadReader {
    room: Arc<AheadRoom>,
    id: u64,
}

impl AheadReader {
    /// What each of this reader's `streams` may have ahead of it now, in bytes.
    pub fn share_bytes(&self, streams: u64) -> u64 {
        let now = Instant::now();
        let mut readers = self.room.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.streams.insert(self.id, (streams, now));
        readers.streams.retain(|_, (_, at)| now.duration_since(*at) < RECENT);
        let all: u64 = readers.streams.values().map(|(streams, _)| streams).sum();
        self.room.bytes / all.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn streams_of_all_readers_share_the_room_while_they_go_on() {
        let room = Arc::new(AheadRoom::new(1200));
        let (one, two) = (room.clone().reader(), room.reader());
        assert_eq!(one.share_bytes(2), 600);
        assert_eq!(two.share_bytes(1), 400);
        assert_eq!(one.share_bytes(2), 400);
        tokio::time::advance(RECENT / 2).await;
        assert_eq!(one.share_bytes(3), 300);
        tokio::time::advance(RECENT / 2).await;
        assert_eq!(one.share_bytes(3), 400, "the other has stopped");
    }
}
