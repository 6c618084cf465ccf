//! Opening a journal: the header, then frame after frame until the end.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::header::{FRAMES_START, Found, Header, Place, START_BYTES};
use super::{
    JOURNAL_BYTES_MIN, Journal, JournalDisk, JournalError, Laid, Owner, Patience, Progress, Shared, State,
    laid_bytes, writer,
};
use crate::codec::{self, CodecError, Frame};
use crate::ids::BLOCK_BYTES;

/// The part of a disk that frames lie in.
struct Ring<'a> {
    disk: &'a dyn JournalDisk,
    capacity: u64,
    /// How long each read may take.
    patience: Duration,
}

impl<'a> Ring<'a> {
    fn new(disk: &'a dyn JournalDisk, patience: Duration) -> Self {
        let capacity = (disk.len_bytes() - FRAMES_START) / BLOCK_BYTES * BLOCK_BYTES;
        Self { disk, capacity, patience }
    }

    async fn read(&self, position: u64, len: usize) -> io::Result<Bytes> {
        let at = position % self.capacity;
        let first = len.min((self.capacity - at) as usize);
        let head = in_time(self.patience, self.disk.read(FRAMES_START + at, first)).await?;
        if first == len {
            return Ok(head);
        }
        let rest = in_time(self.patience, self.disk.read(FRAMES_START, len - first)).await?;
        Ok([head, rest].concat().into())
    }
}

/// What the disk answers, unless it takes longer than `patience`.
pub(super) async fn in_time<T>(
    patience: Duration,
    answer: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = || format!("the disk has not answered within {patience:?}");
    let answer = tokio::time::timeout(patience, answer).await;
    answer.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, late())))
}

impl Journal {
    /// Opens the journal on `disk`, with what an earlier process, or an earlier life of the node, has left for the same
    /// grant. A disk of zeros is a new journal.
    pub async fn open(
        disk: Arc<dyn JournalDisk>,
        owner: Owner,
        patience: Patience,
    ) -> Result<Self, JournalError> {
        let volume = owner.volume;
        let failed = |source| JournalError::Disk { volume, source };
        if disk.len_bytes() < JOURNAL_BYTES_MIN {
            return Err(JournalError::TooSmall { len_bytes: disk.len_bytes() });
        }
        let first = in_time(patience.disk, disk.read(0, START_BYTES as usize)).await.map_err(failed)?;
        let header = match Header::decode(first) {
            Found::Empty => {
                Header { volume, grant: owner.grant, generation: 0, tail: Place::default(), freed: 0 }
            }
            Found::Header(header) if (header.volume, header.grant) == (volume, owner.grant) => header,
            Found::Header(Header { volume: of, grant: found, .. }) => {
                return Err(JournalError::OtherGrant { volume, owner: of, found });
            }
            Found::Damaged => return Err(JournalError::Damaged { volume }),
            Found::Newer => return Err(JournalError::Newer { volume }),
        };
        let ring = Ring::new(&*disk, patience.disk);
        let capacity = ring.capacity;
        let mut state = scan(&ring, &owner, header).await?;
        // What was found may so far be in the system's memory only: this makes it durable, before anybody relies on it.
        // Without another header: while the one found is not durable, the one in the other slot is what the disk has.
        let mut writes = Vec::new();
        if state.header.generation == 0 {
            state.header.generation = 1;
            writes.push(state.header.encode());
        }
        in_time(patience.disk, disk.write(writes)).await.map_err(failed)?;

        let durable = state.last_laid().max(header.freed);
        let shared = Arc::new(Shared {
            owner,
            disk,
            patience,
            capacity,
            state: Mutex::new(state),
            bell: Notify::new(),
            progress: watch::Sender::new(Progress { durable, ..Progress::default() }),
        });
        let writer = AbortOnDropHandle::new(tokio::spawn(writer::run(Arc::clone(&shared))));
        Ok(Self { shared, _writer: writer })
    }
}

/// Reads all frames from the header's tail on.
async fn scan(ring: &Ring<'_>, owner: &Owner, header: Header) -> Result<State, JournalError> {
    let since = Instant::now();
    let mut state = State {
        header,
        head: header.tail,
        frames: VecDeque::new(),
        pending: VecDeque::new(),
        found: Vec::new(),
        freed: header.freed,
        wanted: 0,
        persisting: true,
    };
    let mut last = 0;
    while let Some((frame, bytes)) = frame_at(ring, owner, header, state.head).await? {
        // Numbers grow; what lies between two frames was in the log before the later one was written.
        if frame.first <= last {
            break;
        }
        last = frame.last();
        let begin = state.head;
        let end = Place { position: begin.position + laid_bytes(bytes), prev: frame.id };
        state.frames.push_back(Laid { first: frame.first, last, begin, end, since });
        state.head = end;
        state.found.extend((frame.first..).zip(frame.mutations).filter(|(number, _)| *number > header.freed));
    }
    state.free(header.freed);
    Ok(state)
}

/// The frame at `place` and its length, if an intact one lies there that belongs there.
async fn frame_at(
    ring: &Ring<'_>,
    owner: &Owner,
    header: Header,
    place: Place,
) -> Result<Option<(Frame, u64)>, JournalError> {
    let volume = owner.volume;
    let failed = |source| JournalError::Disk { volume, source };
    let room = header.tail.position + ring.capacity - place.position;
    if room < BLOCK_BYTES {
        return Ok(None);
    }
    let head = ring.read(place.position, BLOCK_BYTES as usize).await.map_err(failed)?;
    let Some(bytes) = or_end(codec::frame_bytes(&head, volume, place.position))? else { return Ok(None) };
    // After the envelope's checksum, so that a length is believed only if it was written as such.
    if laid_bytes(u64::from(bytes)) > room {
        return Ok(None);
    }
    let whole = ring.read(place.position, bytes as usize).await.map_err(failed)?;
    let frame = or_end(codec::decode_frame(&whole, volume, place.position, owner.key.as_ref()))?;
    let belongs = |frame: &Frame| frame.prev == place.prev && frame.grant == owner.grant;
    Ok(frame.filter(belongs).map(|frame| (frame, u64::from(bytes))))
}

/// What is no frame is the journal's end; what is one, but cannot be understood, is an error.
fn or_end<T>(decoded: Result<T, CodecError>) -> Result<Option<T>, CodecError> {
    match decoded {
        Ok(value) => Ok(Some(value)),
        Err(
            CodecError::Truncated { .. }
            | CodecError::BadMagic { .. }
            | CodecError::WrongObject { .. }
            | CodecError::Damaged { .. }
            | CodecError::Unauthentic { .. }
            | CodecError::Malformed { .. }
            | CodecError::TooLarge { .. },
        ) => Ok(None),
        Err(
            error @ (CodecError::NewerVersion { .. }
            | CodecError::Encrypted { .. }
            | CodecError::NotEncrypted { .. }),
        ) => Err(error),
    }
}
