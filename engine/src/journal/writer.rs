//! The one task that writes to a journal's disk.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::header::{FRAMES_START, Header, Place};
use super::open::in_time;
use super::{Laid, Shared, State, frame_bytes, laid_bytes};
use crate::buffer::Mutation;
use crate::codec::{self, Frame};
use crate::ids::ObjectId;

/// Gives the journal up also if the task panics, so that no flush waits for ever.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.fail("the task that writes to it has ended");
    }
}

/// What a flush needs written.
struct Wanted {
    entries: Vec<(u64, Mutation)>,
    head: Place,
    /// The header on the disk, and the one that could be there.
    header: Header,
    next_header: Header,
}

pub(super) async fn run(shared: Arc<Shared>) {
    let ending = Ending(Arc::clone(&shared));
    loop {
        shared.bell.notified().await;
        while let Some(wanted) = wanted(&shared) {
            if let Err(reason) = write(&shared, wanted).await {
                return ending.0.fail(&reason);
            }
        }
    }
}

/// What a waiting flush needs written: everything that is in neither log nor journal.
fn wanted(shared: &Shared) -> Option<Wanted> {
    let mut state = shared.state();
    if state.wanted <= shared.progress.borrow().durable {
        return None;
    }
    if state.pending.is_empty() {
        // It came to be in the log meanwhile.
        refuse(shared, &mut state);
        return None;
    }
    let next_header = Header {
        generation: state.header.generation + 1,
        tail: state.tail(),
        freed: state.freed,
        ..state.header
    };
    Some(Wanted {
        entries: state.pending.iter().cloned().collect(),
        head: state.head,
        header: state.header,
        next_header,
    })
}

/// Tells the flushes that wait to wait for the log instead.
fn refuse(shared: &Shared, state: &mut State) {
    state.wanted = 0;
    shared.progress.send_modify(|progress| progress.refusals += 1);
}

async fn write(shared: &Shared, wanted: Wanted) -> Result<(), String> {
    let Wanted { entries, head, mut header, next_header } = wanted;
    let (frames, bytes) = lay(shared, entries, head);
    let end = head.position + bytes.len() as u64;
    let fits = |header: &Header| end <= header.tail.position + shared.capacity;
    if !fits(&next_header) {
        refuse(shared, &mut shared.state());
        return Ok(());
    }
    let mut writes = around(shared.capacity, head.position, bytes);
    if !fits(&header) {
        // Frames may be overwritten only once the header that no longer needs them is durable.
        to_disk(shared, vec![next_header.encode()]).await?;
        header = next_header;
    } else if next_header.tail != header.tail {
        writes.push(next_header.encode());
        header = next_header;
    }
    to_disk(shared, writes).await?;

    let mut state = shared.state();
    state.header = header;
    let Some(last) = frames.last() else { return Ok(()) };
    let (last, end) = (last.last, last.end);
    state.head = end;
    while state.pending.front().is_some_and(|(number, _)| *number <= last) {
        state.pending.pop_front();
    }
    state.frames.extend(frames);
    let freed = state.freed;
    state.free(freed);
    drop(state);
    shared.progress.send_modify(|progress| progress.durable = progress.durable.max(last));
    Ok(())
}

/// Entries as frames one after the other, from `head` on.
fn lay(shared: &Shared, entries: Vec<(u64, Mutation)>, head: Place) -> (Vec<Laid>, Bytes) {
    let (mut frames, mut bytes, mut place) = (Vec::new(), BytesMut::new(), head);
    let since = Instant::now();
    let mut entries = entries.into_iter().peekable();
    while let Some((first, mutation)) = entries.next() {
        let mut size = codec::entry_bytes(&mutation);
        let mut mutations = vec![mutation];
        while size < frame_bytes(shared.capacity)
            && let Some((_, mutation)) =
                entries.next_if(|(number, _)| *number == first + mutations.len() as u64)
        {
            size += codec::entry_bytes(&mutation);
            mutations.push(mutation);
        }
        let frame = Frame {
            volume: shared.owner.volume,
            grant: shared.owner.grant,
            id: ObjectId::random(&*shared.owner.env.entropy),
            prev: place.prev,
            position: place.position,
            first,
            mutations,
        };
        bytes.extend_from_slice(&codec::encode_frame(&frame, shared.owner.key.as_ref()));
        bytes.resize(laid_bytes(bytes.len() as u64) as usize, 0);
        let end = Place { position: head.position + bytes.len() as u64, prev: frame.id };
        frames.push(Laid { first, last: frame.last(), begin: place, end, since });
        place = end;
    }
    (frames, bytes.freeze())
}

/// Bytes at a position of the ring, as writes to the disk.
fn around(capacity: u64, position: u64, mut bytes: Bytes) -> Vec<(u64, Bytes)> {
    let at = position % capacity;
    let before = bytes.split_to(bytes.len().min((capacity - at) as usize));
    let mut writes = vec![(FRAMES_START + at, before)];
    if !bytes.is_empty() {
        writes.push((FRAMES_START, bytes));
    }
    writes
}

async fn to_disk(shared: &Shared, writes: Vec<(u64, Bytes)>) -> Result<(), String> {
    in_time(shared.patience.disk, shared.disk.write(writes)).await.map_err(|error| error.to_string())
}
