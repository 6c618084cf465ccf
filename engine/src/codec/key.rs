//! The keys: the user's key wraps the pool's master key, which wraps each volume's data key, from which every object's
//! key is derived.
//!
//! # Guarantees
//! - Rotating the user's key rewraps the master key and nothing else.
//! - A wrapped key is bound to its pool or volume; one put in another's place does not unwrap.
//! - Secrets are wiped when dropped and never shown, also not by `Debug`.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::env::Entropy;
use crate::ids::{PoolId, VolumeId};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

const TAG_BYTES: usize = 16;
const CHECK_BYTES: usize = 16;

/// Why a wrapped key did not unwrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The key is not the one that wrapped it, or the wrapped key is damaged. The cipher cannot tell which.
    #[error(
        "the wrapped {what} does not open: the configured key is not the one it was wrapped with, or it is damaged"
    )]
    WrongKey {
        /// What was wrapped: `master key of pool …`, `data key of volume …`.
        what: String,
    },
    /// Its text is not that of a wrapped key.
    #[error("a wrapped key's {field} is not {bytes} bytes in hexadecimal")]
    Malformed {
        /// The field.
        field: &'static str,
        /// How long it must be.
        bytes: usize,
    },
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<[u8; KEY_BYTES]>);

        impl $name {
            /// The key with these bytes.
            pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
                Self(Zeroizing::new(bytes))
            }

            /// A fresh random key.
            pub fn random(entropy: &dyn Entropy) -> Self {
                let mut bytes = Zeroizing::new([0; KEY_BYTES]);
                entropy.fill(bytes.as_mut_slice());
                Self(bytes)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

secret!(
    /// The key that the user gives with the pool's configuration.
    UserKey
);
secret!(
    /// A pool's key. It never changes and never leaves the pool unwrapped.
    MasterKey
);
secret!(
    /// A volume's key. Every object's key is derived from it.
    DataKey
);

impl UserKey {
    /// Wraps the master key of `pool`.
    pub fn wrap(&self, master: &MasterKey, pool: PoolId, entropy: &dyn Entropy) -> WrappedKey {
        WrappedKey::seal(&self.0, &master.0, &context(b"holdfast/1 master key", pool.0), entropy)
    }

    /// Unwraps the master key of `pool`.
    pub fn unwrap(&self, wrapped: &WrappedKey, pool: PoolId) -> Result<MasterKey, KeyError> {
        wrapped
            .open(&self.0, &context(b"holdfast/1 master key", pool.0))
            .map(MasterKey)
            .ok_or_else(|| KeyError::WrongKey { what: format!("master key of pool {pool}") })
    }
}

impl MasterKey {
    /// Wraps the data key of `volume`.
    pub fn wrap(&self, data: &DataKey, volume: VolumeId, entropy: &dyn Entropy) -> WrappedKey {
        WrappedKey::seal(&self.0, &data.0, &context(b"holdfast/1 data key", volume.0), entropy)
    }

    /// Unwraps the data key of `volume`.
    pub fn unwrap(&self, wrapped: &WrappedKey, volume: VolumeId) -> Result<DataKey, KeyError> {
        wrapped
            .open(&self.0, &context(b"holdfast/1 data key", volume.0))
            .map(DataKey)
            .ok_or_else(|| KeyError::WrongKey { what: format!("data key of volume {volume}") })
    }

    /// What `holdfast.json` says of the master key, so that a pool and its key generations can be seen to belong
    /// together: 32 hexadecimal digits that reveal nothing of the key.
    pub fn check_value(&self, pool: PoolId) -> String {
        hex::encode(check(&self.0, &context(b"holdfast/1 key check", pool.0)))
    }
}

impl DataKey {
    /// The key of one object, for [`super::Sealer`].
    pub(super) fn derive(&self, info: &[&[u8]]) -> LessSafeKey {
        let prk = Salt::none(HKDF_SHA256).extract(self.0.as_slice());
        let okm = prk.expand(info, &AES_256_GCM).expect("HKDF-SHA256 yields up to 8160 bytes");
        LessSafeKey::new(UnboundKey::from(okm))
    }

    /// Tells this key of `volume` from others, within a process, and reveals nothing of it.
    pub(crate) fn id(&self, volume: VolumeId) -> [u8; CHECK_BYTES] {
        check(&self.0, &context(b"holdfast/1 data key id", volume.0))
    }
}

fn check(key: &[u8; KEY_BYTES], info: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    Salt::none(HKDF_SHA256)
        .extract(key)
        .expand(&[info], CheckLength)
        .and_then(|okm| okm.fill(&mut check))
        .expect("HKDF-SHA256 yields up to 8160 bytes");
    check
}

struct CheckLength;

impl KeyType for CheckLength {
    fn len(&self) -> usize {
        CHECK_BYTES
    }
}

fn context(label: &[u8], owner: [u8; 16]) -> Vec<u8> {
    [label, owner.as_slice()].concat()
}

/// A key wrapped by another: AES-256-GCM under a random nonce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrappedText", into = "WrappedText")]
pub struct WrappedKey {
    nonce: [u8; NONCE_LEN],
    sealed: [u8; KEY_BYTES + TAG_BYTES],
}

impl WrappedKey {
    fn seal(by: &[u8; KEY_BYTES], key: &[u8; KEY_BYTES], context: &[u8], entropy: &dyn Entropy) -> Self {
        let mut nonce = [0; NONCE_LEN];
        entropy.fill(&mut nonce);
        let mut sealed = [0; KEY_BYTES + TAG_BYTES];
        let (secret, tag) = sealed.split_at_mut(KEY_BYTES);
        secret.copy_from_slice(key);
        let computed = cipher(by)
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), secret)
            .expect("AES-GCM fails only beyond 64 GiB");
        tag.copy_from_slice(computed.as_ref());
        Self { nonce, sealed }
    }

    fn open(&self, by: &[u8; KEY_BYTES], context: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
        let mut buffer = Zeroizing::new(self.sealed);
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let secret = cipher(by).open_in_place(nonce, Aad::from(context), buffer.as_mut_slice()).ok()?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        key.copy_from_slice(secret);
        Some(key)
    }
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, key).expect("the key has the length that the cipher wants"),
    )
}

/// The JSON form of a [`WrappedKey`]: both fields in hexadecimal.
#[derive(Serialize, Deserialize)]
struct WrappedText {
    nonce: String,
    sealed: String,
}

impl From<WrappedKey> for WrappedText {
    fn from(key: WrappedKey) -> Self {
        Self { nonce: hex::encode(key.nonce), sealed: hex::encode(key.sealed) }
    }
}

impl TryFrom<WrappedText> for WrappedKey {
    type Error = KeyError;

    fn try_from(text: WrappedText) -> Result<Self, KeyError> {
        let mut key = Self { nonce: [0; NONCE_LEN], sealed: [0; KEY_BYTES + TAG_BYTES] };
        hex::decode_to_slice(&text.nonce, &mut key.nonce)
            .map_err(|_| KeyError::Malformed { field: "nonce", bytes: key.nonce.len() })?;
        hex::decode_to_slice(&text.sealed, &mut key.sealed)
            .map_err(|_| KeyError::Malformed { field: "sealed", bytes: key.sealed.len() })?;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Env;

    const POOL: PoolId = PoolId([1; 16]);
    const VOLUME: VolumeId = VolumeId([2; 16]);

    #[test]
    fn a_wrapped_key_survives_its_json() {
        let entropy = Env::system().entropy;
        let (user, master) = (UserKey::random(&*entropy), MasterKey::random(&*entropy));
        let wrapped = user.wrap(&master, POOL, &*entropy);
        let json = serde_json::to_string(&wrapped).unwrap();
        let read: WrappedKey = serde_json::from_str(&json).unwrap();
        assert_eq!(read, wrapped);
        assert_eq!(user.unwrap(&read, POOL).unwrap().0, master.0);
        assert_eq!(user.unwrap(&read, POOL).unwrap().check_value(POOL), master.check_value(POOL));
    }

    #[test]
    fn a_key_unwraps_only_for_its_owner_and_under_its_wrapper() {
        let entropy = Env::system().entropy;
        let (master, data) = (MasterKey::random(&*entropy), DataKey::random(&*entropy));
        let wrapped = master.wrap(&data, VOLUME, &*entropy);
        assert_eq!(master.unwrap(&wrapped, VOLUME).unwrap().0, data.0);
        assert!(matches!(master.unwrap(&wrapped, VolumeId([3; 16])), Err(KeyError::WrongKey { .. })));
        let other = MasterKey::random(&*entropy);
        assert!(matches!(other.unwrap(&wrapped, VOLUME), Err(KeyError::WrongKey { .. })));
        // A data key in a master key's place is refused too, although the same bytes wrapped it.
        assert!(UserKey(master.0.clone()).unwrap(&wrapped, PoolId(VOLUME.0)).is_err());
    }

    #[test]
    fn a_malformed_wrapped_key_is_refused_by_field() {
        let text = format!(r#"{{"nonce":"{}","sealed":"abc"}}"#, "00".repeat(NONCE_LEN));
        let error = serde_json::from_str::<WrappedKey>(&text).unwrap_err();
        assert!(error.to_string().contains("sealed"), "{error}");
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", DataKey::new([7; KEY_BYTES])), "DataKey(secret)");
    }
}
