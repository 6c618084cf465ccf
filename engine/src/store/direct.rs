//! Writing large files, and reading large parts of them, past the page cache.
//!
//! What lands in a directory as a segment already lies in the page cache of the file system above the volume, and what
//! is read ahead will. Another copy below it would cost more of the processors' time than all else that is done for a
//! segment, and push out what is read again.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_setfl};

/// Less goes through the page cache: small files are joined there with others on their way to the disk, and small parts
/// are read with what lies around them.
const LARGE_BYTES: usize = 1 << 20;
/// What is written at once from memory that is not aligned. Each thread that does so keeps memory for so much.
const PIECE_BYTES: usize = 2 << 20;
/// Addresses and lengths are multiples of this, as the disks and file systems that we know ask for.
const ALIGN: usize = 4096;

thread_local! {
    static PIECE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Writes `body` to `file`, which is new. It is on the disk only once the file is synced.
pub(super) fn write(file: &mut File, body: &[u8]) -> io::Result<()> {
    let mut rest = body;
    if body.len() >= LARGE_BYTES && fcntl_setfl(&*file, OFlags::DIRECT).is_ok() {
        let written = write_aligned(file, &mut rest);
        fcntl_setfl(&*file, OFlags::empty())?;
        match written {
            // A disk or file system that asks for more than we know: what is left goes through the page cache.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            written => written?,
        }
    }
    file.write_all(rest)
}

/// Writes whole blocks from the beginning of `rest`, and leaves what is less than one.
fn write_aligned(file: &mut File, rest: &mut &[u8]) -> io::Result<()> {
    if rest.as_ptr().align_offset(ALIGN) == 0 {
        let body = *rest;
        return write_piece(file, &body[..body.len() / ALIGN * ALIGN], rest);
    }
    PIECE.with_borrow_mut(|memory| {
        memory.resize(PIECE_BYTES + ALIGN, 0);
        let skip = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        let aligned = &mut memory[skip..skip + PIECE_BYTES];
        while rest.len() >= ALIGN {
            let len = rest.len().min(PIECE_BYTES) / ALIGN * ALIGN;
            aligned[..len].copy_from_slice(&rest[..len]);
            write_piece(file, &aligned[..len], rest)?;
        }
        Ok(())
    })
}

/// Writes `piece`, which is what `rest` begins with, and leaves what comes after it.
fn write_piece(file: &mut File, mut piece: &[u8], rest: &mut &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        let written = file.write(piece)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        piece = &piece[written..];
        *rest = &rest[written..];
    }
    Ok(())
}

/// Reads a part of `file`, which is there.
pub(super) fn read(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let len = (range.end - range.start) as usize;
    if len >= LARGE_BYTES && fcntl_setfl(file, OFlags::DIRECT).is_ok() {
        let read = read_aligned(file, &range);
        fcntl_setfl(file, OFlags::empty())?;
        match read {
            // As above.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            read => return read,
        }
    }
    let mut body = vec![0; len];
    file.read_exact_at(&mut body, range.start)?;
    Ok(body.into())
}

/// Reads the whole blocks in which `range` lies, of which the file's end may cut off the last.
fn read_aligned(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let from = range.start / ALIGN as u64 * ALIGN as u64;
    let blocks = (range.end.next_multiple_of(ALIGN as u64) - from) as usize;
    let mut memory = vec![0; blocks + ALIGN];
    let skip = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
    let wanted = (range.end - from) as usize;
    let mut filled = 0;
    while filled < wanted {
        match file.read_at(&mut memory[skip + filled..skip + blocks], from + filled as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    Ok(Bytes::from(memory).slice(skip + (range.start - from) as usize..skip + wanted))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read, Seek};

    use rustix::fs::fstatfs;
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    use super::*;

    const TMPFS_MAGIC: i64 = 0x0102_1994;

    /// Whether the file begins in the page cache.
    fn is_cached(file: &File) -> bool {
        let mut block = [0; ALIGN];
        match preadv2(file, &mut [IoSliceMut::new(&mut block)], 0, ReadWriteFlags::NOWAIT) {
            Ok(read) => read == ALIGN,
            Err(Errno::AGAIN) => false,
            Err(error) => panic!("a read that does not wait: {error}"),
        }
    }

    #[test]
    fn large_files_go_past_the_page_cache_and_from_where_they_lie_if_that_is_aligned() {
        let memory = vec![1; LARGE_BYTES + 2 * ALIGN];
        let aligned = memory.as_ptr().align_offset(ALIGN);
        let written = |start: usize, len: usize| {
            let mut file = tempfile::tempfile().unwrap();
            write(&mut file, &memory[start..start + len]).unwrap();
            file
        };
        PIECE.take();
        let file = written(aligned, LARGE_BYTES);
        assert!(PIECE.take().is_empty(), "what is aligned was copied");
        let has_a_disk = fstatfs(&file).unwrap().f_type as i64 != TMPFS_MAGIC;
        assert!(!has_a_disk || !is_cached(&file), "what is aligned is in the page cache");
        let file = written(aligned + 1, LARGE_BYTES);
        assert!(!PIECE.take().is_empty());
        assert!(!has_a_disk || !is_cached(&file), "what is not aligned is in the page cache");
        assert!(is_cached(&written(aligned, LARGE_BYTES - 1)));
    }

    #[test]
    fn files_of_all_lengths_are_what_was_written() {
        let memory: Vec<u8> = (0..PIECE_BYTES as u32 * 3).map(|n| (n % 251) as u8).collect();
        let aligned = memory.as_ptr().align_offset(ALIGN);
        for body in [&memory[aligned..], &memory[aligned + 1..]] {
            let whole = body.len() - 17;
            for len in [0, 1, ALIGN, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, PIECE_BYTES, whole] {
                let mut file = tempfile::tempfile().unwrap();
                write(&mut file, &body[..len]).unwrap();
                file.rewind().unwrap();
                let mut found = Vec::new();
                file.read_to_end(&mut found).unwrap();
                assert!(found == body[..len], "{len} bytes");
            }
        }
    }

    #[test]
    fn parts_of_all_lengths_are_what_was_written() {
        let body: Vec<u8> = (0..LARGE_BYTES as u32 * 3 + 17).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&body).unwrap();
        let end = body.len();
        for from in [0, 1, ALIGN - 1, ALIGN, LARGE_BYTES + 7] {
            for to in [from, from + 1, from + LARGE_BYTES - 1, from + LARGE_BYTES, end - 1, end] {
                let found = read(&file, from as u64..to as u64).unwrap();
                assert!(found == body[from..to], "{from}..{to}");
            }
        }
        let beyond = read(&file, 0..end as u64 + 1).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
