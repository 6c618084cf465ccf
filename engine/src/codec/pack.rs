//! Packs: several pages of the map as one object. The body is a table of where they lie; each is a sealed part of its
//! own behind it, which can be read and checked with one ranged get from its reference alone.

use bytes::{BufMut, Bytes};

use super::envelope::{Body, ObjectWriter, open_whole};
use super::page::{EncodedPage, decode_extents};
use super::seal::trailer_bytes;
use super::wire::{Reader, put_count};
use super::{
    CodecError, DataKey, ENVELOPE_BYTES, Identity, ObjectKind, ObjectName, PACK_BYTES_MAX, PACK_PAGES_MAX,
    Sealer,
};
use crate::ids::{ObjectId, VolumeId};
use crate::map::{Extent, PackPlace};

/// Pages begin at multiples of so many bytes: then 16 bits tell where, in the largest pack.
const UNIT: usize = 32;
const PLACE_BYTES: usize = 4;

/// References count the pages of a pack in fours.
const FOUR: usize = 4;

/// What a part begins with: whether its body is compressed.
const PLAIN: u8 = 0;
const LZ4: u8 = 1;

const OUT_OF_RANGE: &str = "a place in a pack is out of range";

/// A place as a reference holds it: 4 bits of how many pages the pack has, length, and where the page begins in units.
pub(super) fn encode_place(object: ObjectName, place: PackPlace) -> Result<(u16, u16, u16), CodecError> {
    let PackPlace { offset, len, pages } = place;
    let (offset, pages) = (offset as usize, usize::from(pages));
    let at = u16::try_from(offset / UNIT).unwrap_or_default();
    if at == 0 || len == 0 || !offset.is_multiple_of(UNIT) || !is_count(pages) || !pages.is_multiple_of(FOUR)
    {
        return Err(CodecError::Malformed { object, what: OUT_OF_RANGE });
    }
    Ok(((pages / FOUR - 1) as u16, len, at))
}

/// The place that a reference holds so; none if all is zero: the page is in no pack.
pub(super) fn decode_place(
    reader: &Reader<'_>,
    fours: u16,
    len: u16,
    at: u16,
) -> Result<Option<PackPlace>, CodecError> {
    match (fours, len, at) {
        (0, 0, 0) => Ok(None),
        (_, 0, _) | (_, _, 0) => Err(reader.malformed(OUT_OF_RANGE)),
        (fours, len, at) => Ok(Some(place((usize::from(fours) + 1) * FOUR, len, at))),
    }
}

fn place(pages: usize, len: u16, at: u16) -> PackPlace {
    // At most PACK_PAGES_MAX.
    PackPlace { offset: u32::from(at) * UNIT as u32, len, pages: pages.next_multiple_of(FOUR) as u8 }
}

/// Whether a pack may have so many pages: a single one is an object of its own.
fn is_count(pages: usize) -> bool {
    (2..=PACK_PAGES_MAX).contains(&pages)
}

/// Whether there is room for `page` in a pack of `pages`.
pub fn fits_pack(pages: &[EncodedPage], page: &EncodedPage) -> bool {
    let bytes = |page: &EncodedPage| PLACE_BYTES + UNIT + 1 + page.body.bytes.len() + trailer_bytes(true);
    let others: usize = pages.iter().map(bytes).sum();
    let head = ENVELOPE_BYTES + 4 + trailer_bytes(true);
    pages.len() < PACK_PAGES_MAX && head + others + bytes(page) <= PACK_BYTES_MAX
}

/// Encodes pages, at least two and as many as [`fits_pack`]; where they lie.
pub(super) fn encode_pack(
    identity: Identity,
    pages: &[EncodedPage],
    key: Option<&DataKey>,
) -> Result<(Bytes, Vec<PackPlace>), CodecError> {
    let object = identity.name(ObjectKind::Pack);
    if !is_count(pages.len()) {
        return Err(CodecError::TooLarge { object, what: "pages", limit: PACK_PAGES_MAX });
    }
    let trailer_bytes = trailer_bytes(key.is_some());
    let body_end = ENVELOPE_BYTES + 4 + pages.len() * PLACE_BYTES + trailer_bytes;
    let mut body = Body { bytes: Vec::with_capacity(body_end), lz4: false };
    put_count(&mut body.bytes, pages.len());
    let mut places = Vec::with_capacity(pages.len());
    let mut end = body_end;
    for page in pages {
        let offset = end.next_multiple_of(UNIT);
        let bytes = 1 + page.body.bytes.len() + trailer_bytes;
        let limit = usize::from(u16::MAX);
        let len = u16::try_from(bytes).map_err(|_| CodecError::TooLarge {
            object,
            what: "bytes of a page",
            limit,
        })?;
        let at = u16::try_from(offset / UNIT).map_err(|_| CodecError::TooLarge {
            object,
            what: "bytes",
            limit: PACK_BYTES_MAX,
        })?;
        body.bytes.put_u16_le(len);
        body.bytes.put_u16_le(at);
        places.push(place(pages.len(), len, at));
        end = offset + bytes;
    }
    let mut writer = ObjectWriter::new(ObjectKind::Pack, identity, key, &body, end - body_end);
    let mut part = Vec::new();
    for page in pages {
        part.clear();
        part.push(if page.body.lz4 { LZ4 } else { PLAIN });
        part.extend_from_slice(&page.body.bytes);
        writer.align(UNIT);
        writer.part(&part);
    }
    Ok((writer.finish(), places))
}

/// Reads the table of the pack `id` of `volume`, whose `bytes` must be the whole: the places of its pages, in order.
/// The pages themselves are not opened.
pub fn decode_pack(
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    key: Option<&DataKey>,
) -> Result<Vec<PackPlace>, CodecError> {
    let object = ObjectName::ById { kind: ObjectKind::Pack, volume, id };
    let (envelope, body) = open_whole(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let count = reader.count(PLACE_BYTES)?;
    if !is_count(count) {
        return Err(reader.malformed("it has too few pages or too many"));
    }
    let mut places = Vec::with_capacity(count);
    let mut end = envelope.body_end() as usize;
    for _ in 0..count {
        let (len, at) = (reader.u16()?, reader.u16()?);
        if len == 0 || at == 0 {
            return Err(reader.malformed(OUT_OF_RANGE));
        }
        let place = place(count, len, at);
        let offset = place.offset as usize;
        let gap = bytes.get(end..offset).filter(|gap| gap.len() < UNIT && gap.iter().all(|byte| *byte == 0));
        if gap.is_none() {
            return Err(reader.malformed("its pages do not follow one another"));
        }
        end = offset + usize::from(len);
        places.push(place);
    }
    reader.end()?;
    if end != bytes.len() {
        return Err(reader.malformed("its pages do not fill it"));
    }
    Ok(places)
}

/// Decodes the page at `place` in the pack `id` of `volume` from the bytes that it takes.
pub fn decode_packed_page(
    stored: Bytes,
    volume: VolumeId,
    id: ObjectId,
    place: PackPlace,
    key: Option<&DataKey>,
) -> Result<Vec<Extent>, CodecError> {
    let object = ObjectName::ById { kind: ObjectKind::Pack, volume, id };
    if stored.len() != usize::from(place.len) {
        let (have, need) = (stored.len() as u64, u64::from(place.len));
        return Err(CodecError::Truncated { object, have, need });
    }
    let sealer = Sealer::new(ObjectKind::Pack, volume, id, key);
    let mut part = sealer.open(object, u64::from(place.offset), None, stored)?;
    let form = Reader::new(object, &part).u8()?;
    let body = part.split_off(1);
    match form {
        PLAIN => decode_extents(object, body, false),
        LZ4 => decode_extents(object, body, true),
        form => Err(Reader::new(object, &body).newer(format!("form {form} of a page"))),
    }
}
