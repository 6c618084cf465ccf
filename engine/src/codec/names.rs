//! The volumes and segments that a body names, listed once in front of the entries that refer to them by index, and
//! those entries: extents, moves, references to map objects.

use std::collections::BTreeMap;

use bytes::BufMut;

use super::chunk::decode_codec;
use super::pack::{decode_place, encode_place};
use super::wire::{Reader, put_count};
use super::{CodecError, ObjectName};
use crate::ids::{CHUNK_BLOCKS_MAX, ObjectId, RecordNumber, VolumeId};
use crate::log::Move;
use crate::map::{Extent, IndexRef, Location, PageRef, SegmentKind, SegmentRef};

const VOLUME_BYTES: usize = 16;
const SEGMENT_BYTES: usize = 28;
const LOCATION_BYTES: usize = 12;
pub(super) const EXTENT_BYTES: usize = 12 + LOCATION_BYTES;
pub(super) const MOVE_BYTES: usize = EXTENT_BYTES + LOCATION_BYTES;
pub(super) const PAGE_REF_BYTES: usize = 40;

/// Bits of a page reference that count its extents, or the pages of an index; those above tell how many pages its pack
/// has. No page has room for as many extents.
const EXTENTS_BITS: u32 = 12;
const EXTENTS_MAX: u32 = (1 << EXTENTS_BITS) - 1;

/// The segment index of a hole; so a body names at most 65,535 segments.
const HOLE: u16 = u16::MAX;

// What encoder and decoder refuse alike: an object that its reader would refuse must never be put.
const UNSORTED_EXTENTS: &str = "its extents are empty, overlap or are not sorted";
const OUTSIDE_CHUNK: &str = "an extent goes beyond its chunk";
const NOWHERE: &str = "a move from or to nowhere";
const UNSORTED_PAGES: &str = "its pages are empty, overlap or are not sorted";

/// The end of an extent, unless it is empty or begins before `end`, where the last one ended.
fn end_of_extent(end: u64, lba: u64, blocks: u32) -> Option<u64> {
    lba.checked_add(u64::from(blocks)).filter(|after| lba >= end && *after > lba)
}

/// The end of a page, unless it is empty or begins before `end`, where the last one ended.
fn end_of_page(end: u64, first_lba: u64, end_lba: u64) -> Option<u64> {
    Some(end_lba).filter(|after| first_lba >= end && *after > first_lba)
}

/// The names that a body being written has used so far.
#[derive(Debug)]
pub(super) struct NamesWriter {
    object: ObjectName,
    volumes: Vec<VolumeId>,
    segments: Vec<(SegmentRef, u16)>,
    by_segment: BTreeMap<SegmentRef, u16>,
}

impl NamesWriter {
    pub(super) fn new(object: ObjectName) -> Self {
        Self { object, volumes: Vec::new(), segments: Vec::new(), by_segment: BTreeMap::new() }
    }

    pub(super) fn object(&self) -> ObjectName {
        self.object
    }

    /// Bytes of what [`Self::encode`] appends.
    pub(super) fn len(&self) -> usize {
        4 + self.volumes.len() * VOLUME_BYTES + 4 + self.segments.len() * SEGMENT_BYTES
    }

    fn volume(&mut self, volume: VolumeId) -> Result<u16, CodecError> {
        // A volume descends from few others, so a search is as good as an index.
        let known = self.volumes.iter().position(|known| *known == volume);
        let index = known.unwrap_or(self.volumes.len());
        let short = self.short(index, "volumes")?;
        if known.is_none() {
            self.volumes.push(volume);
        }
        Ok(short)
    }

    /// Adds the segment to the names, unless it is there already.
    pub(super) fn segment(&mut self, segment: SegmentRef) -> Result<u16, CodecError> {
        if let Some(index) = self.by_segment.get(&segment) {
            return Ok(*index);
        }
        let index = self.short(self.segments.len(), "segments")?;
        let volume = self.volume(segment.volume)?;
        self.segments.push((segment, volume));
        self.by_segment.insert(segment, index);
        Ok(index)
    }

    fn short(&self, index: usize, what: &'static str) -> Result<u16, CodecError> {
        u16::try_from(index).ok().filter(|index| *index != HOLE).ok_or(CodecError::TooLarge {
            object: self.object,
            what,
            limit: usize::from(HOLE),
        })
    }

    /// Appends map entries.
    pub(super) fn put_extents(&mut self, out: &mut Vec<u8>, extents: &[Extent]) -> Result<(), CodecError> {
        out.reserve(extents.len() * EXTENT_BYTES);
        let mut end = 0;
        extents.iter().try_for_each(|extent| self.put_extent(out, extent, &mut end))
    }

    /// Appends the entries of a Relocate.
    pub(super) fn put_moves(&mut self, out: &mut Vec<u8>, moves: &[Move]) -> Result<(), CodecError> {
        out.reserve(moves.len() * MOVE_BYTES);
        let mut end = 0;
        for Move { to, from } in moves {
            if to.location.is_none() {
                return Err(self.malformed(NOWHERE));
            }
            self.put_extent(out, to, &mut end)?;
            self.put_location(out, from, to.blocks)?;
        }
        Ok(())
    }

    fn put_extent(&mut self, out: &mut Vec<u8>, extent: &Extent, end: &mut u64) -> Result<(), CodecError> {
        let Extent { lba, blocks, location } = *extent;
        *end = end_of_extent(*end, lba, blocks).ok_or_else(|| self.malformed(UNSORTED_EXTENTS))?;
        out.put_u64_le(lba);
        out.put_u32_le(blocks);
        match &location {
            Some(location) => self.put_location(out, location, blocks),
            None => {
                out.put_u16_le(HOLE);
                out.put_bytes(0, LOCATION_BYTES - 2);
                Ok(())
            }
        }
    }

    fn put_location(
        &mut self,
        out: &mut Vec<u8>,
        location: &Location,
        blocks: u32,
    ) -> Result<(), CodecError> {
        let Location { segment, stored_offset, stored_len, codec, chunk_blocks, chunk_offset } = *location;
        let chunk_end = u64::from(chunk_offset) + u64::from(blocks);
        if u32::from(chunk_blocks) > CHUNK_BLOCKS_MAX || chunk_end > u64::from(chunk_blocks) {
            return Err(self.malformed(OUTSIDE_CHUNK));
        }
        out.put_u16_le(self.segment(segment)?);
        out.put_u8(codec as u8);
        out.put_u8((chunk_blocks - 1) | (chunk_offset << 4));
        out.put_u32_le(stored_offset);
        out.put_u32_le(stored_len);
        Ok(())
    }

    /// Appends references to the pages of one run.
    pub(super) fn put_pages(&mut self, out: &mut Vec<u8>, pages: &[PageRef]) -> Result<(), CodecError> {
        out.reserve(pages.len() * PAGE_REF_BYTES);
        let mut end = 0;
        for &PageRef { first_lba, end_lba, volume, id, place, extents } in pages {
            end = end_of_page(end, first_lba, end_lba).ok_or_else(|| self.malformed(UNSORTED_PAGES))?;
            if extents > EXTENTS_MAX {
                let limit = EXTENTS_MAX as usize;
                return Err(CodecError::TooLarge { object: self.object, what: "extents of a page", limit });
            }
            let place = place.map(|place| encode_place(self.object, place)).transpose()?;
            let (fours, len, at) = place.unwrap_or_default();
            out.put_u64_le(first_lba);
            out.put_u64_le(end_lba);
            out.put_slice(&id.0);
            out.put_u16_le(extents as u16 | fours << EXTENTS_BITS);
            out.put_u16_le(len);
            out.put_u16_le(self.volume(volume)?);
            out.put_u16_le(at);
        }
        Ok(())
    }

    /// Appends references to the index pages of one run: the same fields as a page's.
    pub(super) fn put_indexes(&mut self, out: &mut Vec<u8>, indexes: &[IndexRef]) -> Result<(), CodecError> {
        let to_page = |index: &IndexRef| {
            let IndexRef { first_lba, end_lba, volume, id, pages } = *index;
            PageRef { first_lba, end_lba, volume, id, place: None, extents: pages }
        };
        self.put_pages(out, &indexes.iter().map(to_page).collect::<Vec<_>>())
    }

    fn malformed(&self, what: &'static str) -> CodecError {
        CodecError::Malformed { object: self.object, what }
    }

    /// Appends the names, which go before the entries that refer to them.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_count(out, self.volumes.len());
        self.volumes.iter().for_each(|volume| out.put_slice(&volume.0));
        put_count(out, self.segments.len());
        for (segment, volume) in &self.segments {
            out.put_slice(&segment.id.0);
            out.put_u64_le(segment.birth.0);
            out.put_u16_le(*volume);
            out.put_u8(match segment.kind {
                SegmentKind::Object => 0,
                SegmentKind::Record => 1,
            });
            out.put_u8(0);
        }
    }
}

/// The names in front of a body's entries.
#[derive(Debug)]
pub(super) struct Names {
    volumes: Vec<VolumeId>,
    segments: Vec<SegmentRef>,
}

impl Names {
    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let volumes = (0..reader.count(VOLUME_BYTES)?)
            .map(|_| reader.array().map(VolumeId))
            .collect::<Result<_, _>>()?;
        let mut names = Self { volumes, segments: Vec::new() };
        let count = reader.count(SEGMENT_BYTES)?;
        names.segments.reserve_exact(count);
        for _ in 0..count {
            let (id, birth) = (ObjectId(reader.array()?), RecordNumber(reader.u64()?));
            let volume = names.volume(reader)?;
            let kind = match reader.u8()? {
                0 => SegmentKind::Object,
                1 => SegmentKind::Record,
                kind => return Err(reader.newer(format!("segment kind {kind}"))),
            };
            reader.zero::<1>()?;
            names.segments.push(SegmentRef { volume, birth, id, kind });
        }
        Ok(names)
    }

    fn volume(&self, reader: &mut Reader<'_>) -> Result<VolumeId, CodecError> {
        let index = usize::from(reader.u16()?);
        self.volumes.get(index).copied().ok_or_else(|| reader.malformed("a volume is not among its names"))
    }

    /// All of `reader`: extents, sorted, not overlapping.
    pub(super) fn extents(&self, reader: &mut Reader<'_>) -> Result<Vec<Extent>, CodecError> {
        let mut extents = Vec::with_capacity(reader.len() / EXTENT_BYTES);
        let mut end = 0;
        while !reader.is_empty() {
            let extent = self.extent(reader, &mut end)?;
            extents.push(extent);
        }
        Ok(extents)
    }

    /// The next extent, which must not begin before `end`; `end` moves behind it.
    fn extent(&self, reader: &mut Reader<'_>, end: &mut u64) -> Result<Extent, CodecError> {
        let (lba, blocks) = (reader.u64()?, reader.u32()?);
        let location = self.location(reader, blocks)?;
        *end = end_of_extent(*end, lba, blocks).ok_or_else(|| reader.malformed(UNSORTED_EXTENTS))?;
        Ok(Extent { lba, blocks, location })
    }

    fn location(&self, reader: &mut Reader<'_>, blocks: u32) -> Result<Option<Location>, CodecError> {
        let index = reader.u16()?;
        if index == HOLE {
            reader.zero::<{ LOCATION_BYTES - 2 }>()?;
            return Ok(None);
        }
        let segment = *self
            .segments
            .get(usize::from(index))
            .ok_or_else(|| reader.malformed("a segment is not among its names"))?;
        let codec = decode_codec(reader)?;
        let chunk = reader.u8()?;
        let (chunk_blocks, chunk_offset) = ((chunk & 0xf) + 1, chunk >> 4);
        let (stored_offset, stored_len) = (reader.u32()?, reader.u32()?);
        if u64::from(chunk_offset) + u64::from(blocks) > u64::from(chunk_blocks) {
            return Err(reader.malformed(OUTSIDE_CHUNK));
        }
        Ok(Some(Location { segment, stored_offset, stored_len, codec, chunk_blocks, chunk_offset }))
    }

    /// All of `reader`: moves, sorted, not overlapping.
    pub(super) fn moves(&self, reader: &mut Reader<'_>) -> Result<Vec<Move>, CodecError> {
        let mut moves = Vec::with_capacity(reader.len() / MOVE_BYTES);
        let mut end = 0;
        while !reader.is_empty() {
            let to = self.extent(reader, &mut end)?;
            let from = self.location(reader, to.blocks)?;
            let (Some(_), Some(from)) = (to.location, from) else {
                return Err(reader.malformed(NOWHERE));
            };
            moves.push(Move { to, from });
        }
        Ok(moves)
    }

    /// All of `reader`: pages of one run, sorted, not overlapping.
    pub(super) fn pages(&self, reader: &mut Reader<'_>) -> Result<Vec<PageRef>, CodecError> {
        let mut pages = Vec::with_capacity(reader.len() / PAGE_REF_BYTES);
        let mut end = 0;
        while !reader.is_empty() {
            let (first_lba, end_lba) = (reader.u64()?, reader.u64()?);
            let (id, counts, len) = (ObjectId(reader.array()?), reader.u16()?, reader.u16()?);
            let (volume, at) = (self.volume(reader)?, reader.u16()?);
            let place = decode_place(reader, counts >> EXTENTS_BITS, len, at)?;
            let extents = u32::from(counts) & EXTENTS_MAX;
            end = end_of_page(end, first_lba, end_lba).ok_or_else(|| reader.malformed(UNSORTED_PAGES))?;
            pages.push(PageRef { first_lba, end_lba, volume, id, place, extents });
        }
        Ok(pages)
    }

    /// All of `reader`: index pages of one run.
    pub(super) fn indexes(&self, reader: &mut Reader<'_>) -> Result<Vec<IndexRef>, CodecError> {
        let pages = self.pages(reader)?;
        let to_index = |page: PageRef| match page {
            PageRef { first_lba, end_lba, volume, id, place: None, extents } => {
                Ok(IndexRef { first_lba, end_lba, volume, id, pages: extents })
            }
            PageRef { place: Some(_), .. } => Err(reader.newer("an index in a pack".into())),
        };
        pages.into_iter().map(to_index).collect()
    }
}
