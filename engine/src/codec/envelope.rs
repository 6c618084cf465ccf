//! What every encoded object begins with, and the sealed body after it.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};

use super::seal::trailer_bytes;
use super::wire::Reader;
use super::{CodecError, DataKey, ObjectName, Sealer};
use crate::ids::{ObjectId, SessionId, VolumeId};

/// Bytes of an envelope.
pub const ENVELOPE_BYTES: usize = 72;

const VERSION: u16 = 1;
const ENCRYPTED: u16 = 1;
const LZ4: u16 = 2;

/// The kinds of encoded objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `volumes/VOL/seg/ID`.
    Segment,
    /// `volumes/VOL/log/N`.
    Record,
    /// `volumes/VOL/root/N`.
    Root,
    /// `volumes/VOL/map/ID`: sorted extents.
    Page,
    /// `volumes/VOL/map/ID`: several pages.
    Pack,
    /// `volumes/VOL/map/ID`: sorted pages.
    Index,
    /// `volumes/VOL/map/ID`: the map of a snapshot.
    SnapshotMap,
    /// A frame of a journal on a node's disk.
    Journal,
}

impl ObjectKind {
    const ALL: [Self; 8] = [
        Self::Segment,
        Self::Record,
        Self::Root,
        Self::Page,
        Self::Pack,
        Self::Index,
        Self::SnapshotMap,
        Self::Journal,
    ];

    /// The eight bytes that an object of this kind begins with.
    pub fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Segment => b"HOLDSEG1",
            Self::Record => b"HOLDREC1",
            Self::Root => b"HOLDROOT",
            Self::Page => b"HOLDPAGE",
            Self::Pack => b"HOLDPACK",
            Self::Index => b"HOLDINDX",
            Self::SnapshotMap => b"HOLDSMAP",
            Self::Journal => b"HOLDJRNL",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Segment => "segment",
            Self::Record => "record",
            Self::Root => "root",
            Self::Page => "map page",
            Self::Pack => "pack of map pages",
            Self::Index => "index page",
            Self::SnapshotMap => "snapshot map",
            Self::Journal => "journal frame",
        })
    }
}

/// Whose an object is, which it is, and who wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The volume that owns it.
    pub volume: VolumeId,
    /// Its id: random, used for this object only.
    pub id: ObjectId,
    /// The session (or archive run) that wrote it. An object that nothing references is swept once that is over. In a
    /// frame of a journal: the grant.
    pub session: SessionId,
}

impl Identity {
    pub(super) fn name(&self, kind: ObjectKind) -> ObjectName {
        ObjectName::ById { kind, volume: self.volume, id: self.id }
    }
}

/// What the first 72 bytes of an object say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// What the object is.
    pub kind: ObjectKind,
    /// Whose it is, and who wrote it.
    pub identity: Identity,
    /// Bytes of the sealed body, with its trailer.
    pub body_bytes: u32,
    /// Bytes of the whole object.
    pub object_bytes: u32,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Whether the body is compressed: its length as u32, then an LZ4 block.
    pub(super) lz4: bool,
}

impl Envelope {
    /// Reads the envelope of `object` from the object's first bytes: enough to know who wrote it.
    ///
    /// In an encrypted pool the envelope is vouched for only together with the body.
    pub fn decode(object: ObjectName, bytes: &[u8]) -> Result<Self, CodecError> {
        let Some(envelope) = bytes.first_chunk::<ENVELOPE_BYTES>() else {
            return Err(CodecError::Truncated {
                object,
                have: bytes.len() as u64,
                need: ENVELOPE_BYTES as u64,
            });
        };
        let mut fields = Reader::new(object, envelope);
        let magic = fields.array::<8>()?;
        let kind = ObjectKind::ALL
            .into_iter()
            .find(|kind| *kind.magic() == magic)
            .ok_or(CodecError::BadMagic { object })?;
        let version = fields.u16()?;
        let flags = fields.u16()?;
        let body_bytes = fields.u32()?;
        let object_bytes = fields.u32()?;
        let identity = Identity {
            volume: VolumeId(fields.array()?),
            id: ObjectId(fields.array()?),
            session: ObjectId(fields.array()?),
        };
        if fields.u32()? != checksum(envelope) {
            return Err(CodecError::Damaged { object, offset: 0 });
        }
        if version != VERSION {
            return Err(fields.newer(format!("version {version}")));
        }
        if flags & !(ENCRYPTED | LZ4) != 0 {
            return Err(fields.newer(format!("flags {flags:#x}")));
        }
        let encrypted = flags & ENCRYPTED != 0;
        let parsed = Self { kind, identity, body_bytes, object_bytes, encrypted, lz4: flags & LZ4 != 0 };
        parsed.is(object)?;
        if parsed.lz4 && kind != ObjectKind::Page {
            return Err(fields.newer("a compressed body".into()));
        }
        if (body_bytes as usize) < trailer_bytes(encrypted) || u64::from(object_bytes) < parsed.body_end() {
            return Err(fields.malformed("its lengths do not add up"));
        }
        Ok(parsed)
    }

    /// Where the body ends, in bytes from the object's begin: a get of this many bytes has envelope and body.
    pub fn body_end(&self) -> u64 {
        ENVELOPE_BYTES as u64 + u64::from(self.body_bytes)
    }

    fn is(&self, object: ObjectName) -> Result<(), CodecError> {
        let Identity { volume, id, .. } = self.identity;
        let same_id = match object {
            ObjectName::ById { id: expected, .. } => id == expected,
            // The body says which number it has.
            ObjectName::ByNumber { .. } => true,
        };
        if self.kind == object.kind() && volume == object.volume() && same_id {
            Ok(())
        } else {
            let found = self.identity.name(self.kind).to_string();
            Err(CodecError::WrongObject { object, found })
        }
    }

    fn encode(&self) -> [u8; ENVELOPE_BYTES] {
        let mut flags = if self.encrypted { ENCRYPTED } else { 0 };
        flags |= if self.lz4 { LZ4 } else { 0 };
        let mut envelope = [0; ENVELOPE_BYTES];
        let mut out = envelope.as_mut_slice();
        out.put_slice(self.kind.magic());
        out.put_u16_le(VERSION);
        out.put_u16_le(flags);
        out.put_u32_le(self.body_bytes);
        out.put_u32_le(self.object_bytes);
        out.put_slice(&self.identity.volume.0);
        out.put_slice(&self.identity.id.0);
        out.put_slice(&self.identity.session.0);
        let checksum = checksum(&envelope);
        envelope[ENVELOPE_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        envelope
    }
}

/// CRC-32C of everything before the checksum.
fn checksum(envelope: &[u8; ENVELOPE_BYTES]) -> u32 {
    crc_fast::crc32_iscsi(&envelope[..ENVELOPE_BYTES - 4])
}

/// An object being written: envelope and body are there, chunks or pages may follow.
#[derive(Debug)]
pub(super) struct ObjectWriter {
    bytes: Vec<u8>,
    /// Where the object begins in `bytes`.
    start: usize,
    sealer: Sealer,
}

/// A body, ready to be sealed.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) lz4: bool,
}

impl ObjectWriter {
    /// Writes the envelope and the sealed body. `data_bytes` of sealed parts will follow. Callers have checked their
    /// own limits, which are far below 4 GiB.
    pub(super) fn new(
        kind: ObjectKind,
        identity: Identity,
        key: Option<&DataKey>,
        body: &Body,
        data_bytes: usize,
    ) -> Self {
        Self::within(Vec::new(), 1, kind, identity, key, body, data_bytes)
    }

    /// As [`Self::new`], in memory that was used for another object before, at an address that is a multiple of `align`.
    pub(super) fn within(
        memory: Vec<u8>,
        align: usize,
        kind: ObjectKind,
        identity: Identity,
        key: Option<&DataKey>,
        body: &Body,
        data_bytes: usize,
    ) -> Self {
        let sealer = Sealer::new(kind, identity.volume, identity.id, key);
        let body_bytes = body.bytes.len() + sealer.trailer_bytes();
        let object_bytes = ENVELOPE_BYTES + body_bytes + data_bytes;
        let envelope = Envelope {
            kind,
            identity,
            body_bytes: body_bytes as u32,
            object_bytes: object_bytes as u32,
            encrypted: key.is_some(),
            lz4: body.lz4,
        }
        .encode();
        let mut bytes = memory;
        bytes.clear();
        bytes.reserve_exact(object_bytes + align - 1);
        let start = bytes.as_ptr().align_offset(align).min(align - 1);
        bytes.resize(start, 0);
        bytes.extend_from_slice(&envelope);
        bytes.extend_from_slice(&body.bytes);
        sealer.seal(&mut bytes, start, ENVELOPE_BYTES, Some(&envelope));
        Self { bytes, start, sealer }
    }

    /// Appends zeros until the object's next multiple of `unit`.
    pub(super) fn align(&mut self, unit: usize) {
        let len = self.bytes.len() - self.start;
        self.bytes.resize(self.start + len.next_multiple_of(unit), 0);
    }

    /// Appends a part and seals it; returns where it lies and how long it is. An object is far below 4 GiB.
    pub(super) fn part(&mut self, payload: &[u8]) -> (u32, u32) {
        let from = self.bytes.len() - self.start;
        self.bytes.extend_from_slice(payload);
        self.sealer.seal(&mut self.bytes, self.start, from, None);
        (from as u32, (self.bytes.len() - self.start - from) as u32)
    }

    pub(super) fn finish(self) -> Bytes {
        let mut bytes = Bytes::from(self.bytes);
        bytes.advance(self.start);
        bytes
    }
}

/// Opens the body of `object`, of which `bytes` has at least envelope and body.
pub(super) fn open_body(
    object: ObjectName,
    bytes: &Bytes,
    key: Option<&DataKey>,
) -> Result<(Envelope, Bytes), CodecError> {
    let envelope = Envelope::decode(object, bytes)?;
    match (envelope.encrypted, key) {
        (true, None) => return Err(CodecError::Encrypted { object }),
        (false, Some(_)) => return Err(CodecError::NotEncrypted { object }),
        (true, Some(_)) | (false, None) => {}
    }
    let body_end = envelope.body_end();
    let (Some(head), true) = (bytes.first_chunk(), bytes.len() as u64 >= body_end) else {
        return Err(CodecError::Truncated { object, have: bytes.len() as u64, need: body_end });
    };
    let Identity { volume, id, .. } = envelope.identity;
    let sealed = bytes.slice(ENVELOPE_BYTES..body_end as usize);
    let body = Sealer::new(envelope.kind, volume, id, key).open(
        object,
        ENVELOPE_BYTES as u64,
        Some(head),
        sealed,
    )?;
    Ok((envelope, body))
}

/// Opens the body of `object`, of which `bytes` must be the whole.
pub(super) fn open_whole(
    object: ObjectName,
    bytes: &Bytes,
    key: Option<&DataKey>,
) -> Result<(Envelope, Bytes), CodecError> {
    let (envelope, body) = open_body(object, bytes, key)?;
    let (have, need) = (bytes.len() as u64, u64::from(envelope.object_bytes));
    if have < need {
        return Err(CodecError::Truncated { object, have, need });
    }
    if have > need {
        return Err(CodecError::Malformed { object, what: "bytes follow its end" });
    }
    Ok((envelope, body))
}
