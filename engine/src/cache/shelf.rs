//! A pair of files that hold chunks put one after the other: the chunks, and a row for each.
//!
//! The row is written after its chunk, so a process that dies leaves whole entries. A power failure may leave a row
//! without its chunk; the checksum tells.
//!
//! # Layout
//! `NNNNNNNNNNNNNNNNNNNN.chunks`: chunks without anything between them. `NNNNNNNNNNNNNNNNNNNN.rows`: `HOLDSHF1`, then
//! rows of 36 bytes, little-endian: segment id, offset in the segment u32, place in the other file u32, length u32,
//! CRC-32C of the chunk u32, CRC-32C of the row so far u32.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::ChunkKey;
use crate::ids::ObjectId;

const MAGIC: &[u8; 8] = b"HOLDSHF1";
const ROW_BYTES: usize = 36;
const CHUNKS: &str = "chunks";
const ROWS: &str = "rows";

/// Where a chunk lies on its shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: u32,
    pub(super) len: u32,
    crc: u32,
}

/// The files, open.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) number: u64,
    chunks: File,
}

/// A shelf that chunks are still put on.
#[derive(Debug)]
pub(super) struct Filling {
    rows: File,
    /// Bytes of chunks on it.
    pub(super) bytes: u32,
    /// How many chunks.
    pub(super) entries: u32,
}

fn path(dir: &Path, number: u64, kind: &str) -> PathBuf {
    dir.join(format!("{number:020}.{kind}"))
}

/// The numbers of the shelves in `dir`, oldest first.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == CHUNKS || kind == ROWS) {
            numbers.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Removes a shelf's files; those who have it open can still read it.
pub(super) fn remove(dir: &Path, number: u64) -> io::Result<()> {
    for kind in [ROWS, CHUNKS] {
        match std::fs::remove_file(path(dir, number, kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

impl Shelf {
    /// An empty shelf.
    pub(super) fn create(dir: &Path, number: u64) -> io::Result<(Self, Filling)> {
        let open = |kind| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).open(path(dir, number, kind))
        };
        let (chunks, rows) = (open(CHUNKS)?, open(ROWS)?);
        rows.write_all_at(MAGIC, 0)?;
        Ok((Self { number, chunks }, Filling { rows, bytes: 0, entries: 0 }))
    }

    /// A shelf that an earlier process has filled, and what is on it.
    pub(super) fn load(dir: &Path, number: u64) -> io::Result<(Self, Vec<(ChunkKey, Place)>)> {
        let rows = std::fs::read(path(dir, number, ROWS))?;
        let chunks = File::open(path(dir, number, CHUNKS))?;
        let bytes = chunks.metadata()?.len();
        let rows = rows.strip_prefix(MAGIC).ok_or(io::ErrorKind::InvalidData)?;
        let entries = rows
            .chunks_exact(ROW_BYTES)
            .map_while(decode_row)
            .take_while(|(_, place)| u64::from(place.at) + u64::from(place.len) <= bytes)
            .collect();
        Ok((Self { number, chunks }, entries))
    }

    /// Puts a chunk behind those that are there. After an error the shelf takes no more.
    pub(super) fn put(&self, filling: &mut Filling, key: &ChunkKey, chunk: &[u8]) -> io::Result<Place> {
        let len = u32::try_from(chunk.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let place = Place { at: filling.bytes, len, crc: crc_fast::crc32_iscsi(chunk) };
        let end = place.at.checked_add(len).ok_or(io::ErrorKind::FileTooLarge)?;
        self.chunks.write_all_at(chunk, place.at.into())?;
        let row_at = MAGIC.len() as u64 + u64::from(filling.entries) * ROW_BYTES as u64;
        filling.rows.write_all_at(&encode_row(key, &place), row_at)?;
        filling.bytes = end;
        filling.entries += 1;
        Ok(place)
    }

    /// Reads a chunk; an error also if it is not the one that was put there.
    pub(super) fn read(&self, place: &Place) -> io::Result<Bytes> {
        let mut chunk = vec![0; place.len as usize];
        self.chunks.read_exact_at(&mut chunk, place.at.into())?;
        if crc_fast::crc32_iscsi(&chunk) != place.crc {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(chunk.into())
    }
}

fn encode_row(key: &ChunkKey, place: &Place) -> [u8; ROW_BYTES] {
    let mut row = [0; ROW_BYTES];
    row[..16].copy_from_slice(&key.segment.0);
    row[16..20].copy_from_slice(&key.stored_offset.to_le_bytes());
    row[20..24].copy_from_slice(&place.at.to_le_bytes());
    row[24..28].copy_from_slice(&place.len.to_le_bytes());
    row[28..32].copy_from_slice(&place.crc.to_le_bytes());
    let crc = crc_fast::crc32_iscsi(&row[..32]);
    row[32..].copy_from_slice(&crc.to_le_bytes());
    row
}

/// A row, if it is whole.
fn decode_row(row: &[u8]) -> Option<(ChunkKey, Place)> {
    let number = |at: usize| Some(u32::from_le_bytes(row.get(at..at + 4)?.try_into().ok()?));
    if number(32)? != crc_fast::crc32_iscsi(&row[..32]) {
        return None;
    }
    let segment = ObjectId(row[..16].try_into().ok()?);
    let key = ChunkKey { segment, stored_offset: number(16)? };
    Some((key, Place { at: number(20)?, len: number(24)?, crc: number(28)? }))
}
