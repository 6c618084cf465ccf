//! Sealing the parts of an object: encryption and authentication, or a checksum.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use bytes::{Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};

use super::{CodecError, DataKey, ENVELOPE_BYTES, ObjectKind, ObjectName};
use crate::ids::{ObjectId, VolumeId};

const TAG_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 8;
const BOUND_BYTES: usize = 48;

/// Seals and opens the parts of one object.
///
/// With a key: AES-256-GCM under HKDF-SHA256(data key, `holdfast/1` ‖ type ‖ id), the nonce being the part's byte
/// offset in the object. Without: CRC-64/NVME. Either covers, besides the part, the volume, id, type and offset, and
/// for the body also the envelope.
#[derive(Debug)]
pub(super) struct Sealer {
    key: Option<LessSafeKey>,
    kind: ObjectKind,
    volume: VolumeId,
    id: ObjectId,
}

impl Sealer {
    /// For the object `id` of `volume`, under the volume's data key.
    pub(super) fn new(kind: ObjectKind, volume: VolumeId, id: ObjectId, key: Option<&DataKey>) -> Self {
        let key = key.map(|key| key.derive(&[b"holdfast/1", kind.magic(), &id.0]));
        Self { key, kind, volume, id }
    }

    /// Bytes that sealing adds to a part.
    pub(super) fn trailer_bytes(&self) -> usize {
        trailer_bytes(self.key.is_some())
    }

    /// Seals what the object that begins at byte `start` of `memory` holds from its byte `from` on, and appends the
    /// trailer.
    pub(super) fn seal(
        &self,
        memory: &mut Vec<u8>,
        start: usize,
        from: usize,
        envelope: Option<&[u8; ENVELOPE_BYTES]>,
    ) {
        let bound = self.bound(from as u64);
        let part = start + from;
        match &self.key {
            Some(key) => {
                let aad = Aad::from(with_envelope(&bound, envelope));
                let tag = key
                    .seal_in_place_separate_tag(nonce(from as u64), aad, &mut memory[part..])
                    .expect("AES-GCM fails only beyond 64 GiB");
                memory.extend_from_slice(tag.as_ref());
            }
            None => {
                let checksum = checksum(&bound, envelope, &memory[part..]);
                memory.extend_from_slice(&checksum);
            }
        }
    }

    /// Opens a part that was sealed at `offset`. The errors name `object`.
    pub(super) fn open(
        &self,
        object: ObjectName,
        offset: u64,
        envelope: Option<&[u8; ENVELOPE_BYTES]>,
        mut sealed: Bytes,
    ) -> Result<Bytes, CodecError> {
        let Some(payload_bytes) = sealed.len().checked_sub(self.trailer_bytes()) else {
            let need = self.trailer_bytes() as u64;
            return Err(CodecError::Truncated { object, have: sealed.len() as u64, need });
        };
        let bound = self.bound(offset);
        match &self.key {
            Some(key) => {
                let mut buffer = BytesMut::from(sealed);
                let aad = Aad::from(with_envelope(&bound, envelope));
                key.open_in_place(nonce(offset), aad, &mut buffer)
                    .map_err(|_| CodecError::Unauthentic { object, offset })?;
                buffer.truncate(payload_bytes);
                Ok(buffer.freeze())
            }
            None => {
                let trailer = sealed.split_off(payload_bytes);
                if checksum(&bound, envelope, &sealed) != *trailer {
                    return Err(CodecError::Damaged { object, offset });
                }
                Ok(sealed)
            }
        }
    }

    /// What a sealed part is bound to.
    fn bound(&self, offset: u64) -> [u8; BOUND_BYTES] {
        let mut bound = [0; BOUND_BYTES];
        bound[..16].copy_from_slice(&self.volume.0);
        bound[16..32].copy_from_slice(&self.id.0);
        bound[32..40].copy_from_slice(self.kind.magic());
        bound[40..].copy_from_slice(&offset.to_le_bytes());
        bound
    }
}

pub(super) fn trailer_bytes(encrypted: bool) -> usize {
    if encrypted { TAG_BYTES } else { CHECKSUM_BYTES }
}

/// Offsets differ between the parts of an object, and the key between objects: no nonce is used twice.
fn nonce(offset: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&offset.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn with_envelope(bound: &[u8; BOUND_BYTES], envelope: Option<&[u8; ENVELOPE_BYTES]>) -> Vec<u8> {
    let mut aad = bound.to_vec();
    aad.extend_from_slice(envelope.map_or(&[], |e| e.as_slice()));
    aad
}

fn checksum(
    bound: &[u8; BOUND_BYTES],
    envelope: Option<&[u8; ENVELOPE_BYTES]>,
    payload: &[u8],
) -> [u8; CHECKSUM_BYTES] {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(bound);
    digest.update(envelope.map_or(&[], |e| e.as_slice()));
    digest.update(payload);
    digest.finalize().to_le_bytes()
}
