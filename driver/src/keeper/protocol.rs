//! What the node process and the keeper say to each other.
//!
//! A sequenced-packet Unix socket: one packet is one message in JSON, and descriptors travel with it. The
//! client speaks first ([`Call::Hello`]) and names the versions that it knows; the keeper chooses the newest
//! that both know. Both sides know their own version and the one before it, so either can be updated first.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The newest version of the protocol.
pub const NEWEST_VERSION: u32 = 1;
/// The oldest version that is still spoken.
pub const OLDEST_VERSION: u32 = 1;

/// Longest message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 32 << 10;
/// Longest key or kind in bytes.
pub const MAX_NAME_BYTES: usize = 160;
/// Longest text kept with an entry.
pub const MAX_METADATA_BYTES: usize = 8 << 10;
/// Descriptors of one entry.
pub const MAX_FDS: usize = 16;
/// Entries that the keeper holds.
pub const MAX_ENTRIES: usize = 2048;
/// File systems guarded at once.
pub const MAX_GUARDS: usize = 1024;
/// Connections at once.
pub const MAX_CONNECTIONS: usize = 16;
/// Names in one answer to [`Call::List`].
pub const LIST_PAGE: usize = 64;

/// What an entry is kept under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    /// The volume.
    pub key: String,
    /// What of it; the keeper does not interpret this.
    pub kind: String,
}

impl Name {
    /// The name of `kind` of the volume `key`.
    pub fn new(key: &str, kind: &str) -> Name {
        Name { key: key.into(), kind: kind.into() }
    }
}

/// A request to the keeper. Every one may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// Begins a connection.
    Hello {
        /// Oldest version that the client speaks.
        oldest: u32,
        /// Newest version that the client speaks.
        newest: u32,
    },
    /// Keeps the descriptors sent along; replaces what was kept under the name.
    Put {
        /// Under which name.
        name: Name,
        /// A text that is returned with the descriptors.
        metadata: String,
    },
    /// Asks for an entry.
    Get {
        /// Which one.
        name: Name,
    },
    /// Forgets an entry; one that is not there is no error.
    Drop {
        /// Which one.
        name: Name,
    },
    /// Asks for the names of the entries, at most [`LIST_PAGE`] of them.
    List {
        /// Only names after this one.
        after: Option<Name>,
    },
    /// Thaws the file system of the directory sent along when the deadline passes.
    Guard {
        /// Under which key.
        key: String,
        /// Milliseconds until the deadline.
        deadline_ms: u64,
    },
    /// Ends a guard.
    Unguard {
        /// Which one.
        key: String,
    },
}

/// The keeper's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello {
        /// The version that this connection speaks.
        version: u32,
    },
    /// Done.
    Done,
    /// An entry; its descriptors are sent along.
    Entry {
        /// The text kept with it.
        metadata: String,
    },
    /// Names in order.
    Names {
        /// The names.
        names: Vec<Name>,
        /// Whether there are more after the last.
        more: bool,
    },
    /// To [`Call::Unguard`].
    Unguarded {
        /// Whether the deadline had not passed.
        in_time: bool,
    },
    /// Nothing was changed.
    Refused {
        /// Why.
        reason: Refusal,
    },
}

/// Why the keeper refuses a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Refusal {
    /// A bound is reached.
    #[error("the keeper is full ({bound} {what})")]
    Full {
        /// What there are too many of.
        what: String,
        /// How many are allowed.
        bound: usize,
    },
    /// No such entry.
    #[error("the keeper holds no such entry")]
    NotFound,
    /// The call cannot be understood.
    #[error("the keeper does not understand the call: {detail}")]
    Malformed {
        /// What is wrong with it.
        detail: String,
    },
    /// No version in common.
    #[error("the keeper speaks protocol versions {oldest} to {newest}; update whichever is older")]
    Version {
        /// Oldest version of the keeper.
        oldest: u32,
        /// Newest version of the keeper.
        newest: u32,
    },
}

/// Sends one message with descriptors.
///
/// # Errors
/// The socket's error; `InvalidInput` when a bound of this module is exceeded.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_MESSAGE_BYTES || fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message exceeds the protocol's bounds"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(fds));
        debug_assert!(fits, "the space is made for MAX_FDS descriptors");
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message with its descriptors; `None` when the peer has closed.
///
/// # Errors
/// The socket's error; `InvalidData` for what is no message or exceeds the bounds.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message exceeds the protocol's bounds"));
    }
    let message = serde_json::from_slice(&bytes[..received.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

/// The version that both sides know, if there is one.
pub fn common_version(oldest: u32, newest: u32) -> Option<u32> {
    let version = newest.min(NEWEST_VERSION);
    (version >= oldest.max(OLDEST_VERSION)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(common_version(1, 1), Some(1));
        assert_eq!(common_version(1, 2), Some(1));
        assert_eq!(common_version(2, 3), None);
        assert_eq!(common_version(0, 0), None);
    }

    #[test]
    fn a_call_keeps_its_form() {
        // A keeper of the previous version must be able to read this.
        let call = Call::Put { name: Name::new("vol", "stack"), metadata: "m".into() };
        assert_eq!(
            serde_json::to_string(&call).unwrap(),
            r#"{"call":"put","name":{"key":"vol","kind":"stack"},"metadata":"m"}"#
        );
    }
}
