//! Pages of the map, and index pages over them.

use bytes::{BufMut, Bytes};

use super::envelope::{Body, ObjectWriter, open_whole};
use super::names::{EXTENT_BYTES, Names, NamesWriter};
use super::pack::encode_pack;
use super::wire::Reader;
use super::{CodecError, DataKey, INDEX_PAGES_MAX, Identity, ObjectKind, ObjectName, PAGE_BODY_BYTES_MAX};
use crate::ids::{ObjectId, VolumeId};
use crate::map::{Extent, PackPlace, PageRef};

/// What names a page while it has no object.
const UNNAMED: ObjectName =
    ObjectName::ById { kind: ObjectKind::Page, volume: VolumeId::NONE, id: ObjectId::NONE };

/// How many of `extents`, counted from the first, fit one page. At least one if there are any.
pub fn page_capacity(extents: &[Extent]) -> usize {
    let mut names = NamesWriter::new(UNNAMED);
    let fits = |(place, extent): &(usize, &Extent)| {
        // A page is full long before it has more names than an index can tell apart.
        let named = extent.location.is_none_or(|location| names.segment(location.segment).is_ok());
        named && names.len() + (place + 1) * EXTENT_BYTES <= PAGE_BODY_BYTES_MAX
    };
    extents.iter().enumerate().take_while(fits).count()
}

/// A page, encoded and ready to be put, alone or with others.
#[derive(Debug)]
pub struct EncodedPage {
    first_lba: u64,
    end_lba: u64,
    extents: u32,
    pub(super) body: Body,
}

impl EncodedPage {
    /// Encodes `extents`, sorted and not overlapping: at least one, and [`page_capacity`] of them at most.
    pub fn new(extents: &[Extent]) -> Result<Self, CodecError> {
        let mut names = NamesWriter::new(UNNAMED);
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
            return Err(CodecError::Malformed { object: UNNAMED, what: "it has no extents" });
        };
        let mut entries = Vec::new();
        names.put_extents(&mut entries, extents)?;
        let mut plain = Vec::with_capacity(names.len() + entries.len());
        names.encode(&mut plain);
        plain.append(&mut entries);
        if plain.len() > PAGE_BODY_BYTES_MAX {
            let (what, limit) = ("bytes of extents", PAGE_BODY_BYTES_MAX);
            return Err(CodecError::TooLarge { object: UNNAMED, what, limit });
        }
        let (first_lba, end_lba) = (first.lba, last.end());
        // Each takes more than a byte of a body of 64 KiB.
        Ok(Self { first_lba, end_lba, extents: extents.len() as u32, body: compress(plain) })
    }

    /// How many extents it holds.
    pub fn extents(&self) -> usize {
        self.extents as usize
    }

    fn reference(&self, identity: Identity, place: Option<PackPlace>) -> PageRef {
        let Self { first_lba, end_lba, extents, .. } = *self;
        PageRef { first_lba, end_lba, volume: identity.volume, id: identity.id, place, extents }
    }
}

/// Pages as one object, ready to be put.
#[derive(Debug, Clone)]
pub struct EncodedPages {
    /// The object.
    pub bytes: Bytes,
    /// What refers to its pages, in order.
    pub pages: Vec<PageRef>,
}

/// Encodes pages as one object: several, as many as [`super::fits_pack`], as a pack, a single one as a page.
pub fn encode_pages(
    identity: Identity,
    pages: &[EncodedPage],
    key: Option<&DataKey>,
) -> Result<EncodedPages, CodecError> {
    if let [page] = pages {
        let bytes = ObjectWriter::new(ObjectKind::Page, identity, key, &page.body, 0).finish();
        return Ok(EncodedPages { bytes, pages: vec![page.reference(identity, None)] });
    }
    let (bytes, places) = encode_pack(identity, pages, key)?;
    let pages = pages.iter().zip(places).map(|(page, place)| page.reference(identity, Some(place)));
    Ok(EncodedPages { bytes, pages: pages.collect() })
}

/// Decodes the page `id` of `volume`, an object of its own.
pub fn decode_page(
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    key: Option<&DataKey>,
) -> Result<Vec<Extent>, CodecError> {
    let object = ObjectName::ById { kind: ObjectKind::Page, volume, id };
    let (envelope, bytes) = open_whole(object, bytes, key)?;
    decode_extents(object, bytes, envelope.lz4)
}

/// Decodes the extents of a page from its body.
pub(super) fn decode_extents(object: ObjectName, body: Bytes, lz4: bool) -> Result<Vec<Extent>, CodecError> {
    let plain = if lz4 { decompress(object, &body)? } else { body };
    let mut reader = Reader::new(object, &plain);
    let names = Names::decode(&mut reader)?;
    names.extents(&mut reader)
}

/// The body, compressed if that makes it smaller.
fn compress(plain: Vec<u8>) -> Body {
    let mut packed = Vec::with_capacity(plain.len());
    // At most PAGE_BODY_BYTES_MAX.
    packed.put_u32_le(plain.len() as u32);
    packed.extend_from_slice(&lz4_flex::block::compress(&plain));
    if packed.len() < plain.len() {
        // Many wait for others to be put with.
        packed.shrink_to_fit();
        Body { bytes: packed, lz4: true }
    } else {
        Body { bytes: plain, lz4: false }
    }
}

fn decompress(object: ObjectName, packed: &[u8]) -> Result<Bytes, CodecError> {
    let mut reader = Reader::new(object, packed);
    let len = reader.u32()? as usize;
    if len > PAGE_BODY_BYTES_MAX {
        return Err(CodecError::TooLarge { object, what: "bytes of extents", limit: PAGE_BODY_BYTES_MAX });
    }
    let mut plain = vec![0; len];
    match lz4_flex::block::decompress_into(reader.bytes(reader.len())?, &mut plain) {
        Ok(bytes) if bytes == len => Ok(plain.into()),
        Ok(_) | Err(_) => Err(reader.malformed("its compressed body does not unpack to its length")),
    }
}

/// Encodes an index page over up to [`INDEX_PAGES_MAX`] consecutive pages of a run.
pub fn encode_index(
    identity: Identity,
    pages: &[PageRef],
    key: Option<&DataKey>,
) -> Result<Bytes, CodecError> {
    let object = identity.name(ObjectKind::Index);
    if pages.len() > INDEX_PAGES_MAX {
        return Err(CodecError::TooLarge { object, what: "pages", limit: INDEX_PAGES_MAX });
    }
    let mut names = NamesWriter::new(object);
    let mut entries = Vec::new();
    names.put_pages(&mut entries, pages)?;
    let mut bytes = Vec::with_capacity(names.len() + entries.len());
    names.encode(&mut bytes);
    bytes.append(&mut entries);
    let body = Body { bytes, lz4: false };
    Ok(ObjectWriter::new(ObjectKind::Index, identity, key, &body, 0).finish())
}

/// Decodes the index page `id` of `volume`.
pub fn decode_index(
    bytes: &Bytes,
    volume: VolumeId,
    id: ObjectId,
    key: Option<&DataKey>,
) -> Result<Vec<PageRef>, CodecError> {
    let object = ObjectName::ById { kind: ObjectKind::Index, volume, id };
    let (_, body) = open_whole(object, bytes, key)?;
    let mut reader = Reader::new(object, &body);
    let names = Names::decode(&mut reader)?;
    names.pages(&mut reader)
}
