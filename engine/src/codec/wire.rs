//! Reading the fields of a body. Everything is little-endian; writing goes through [`bytes::BufMut`].

use bytes::BufMut;

use super::{CodecError, ObjectName};

/// A body, or a part of one, being read. Its errors name the object.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    object: ObjectName,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(object: ObjectName, bytes: &'a [u8]) -> Self {
        Self { object, rest: bytes }
    }

    pub(super) fn object(&self) -> ObjectName {
        self.object
    }

    pub(super) fn malformed(&self, what: &'static str) -> CodecError {
        CodecError::Malformed { object: self.object, what }
    }

    pub(super) fn newer(&self, what: String) -> CodecError {
        CodecError::NewerVersion { object: self.object, what }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| self.malformed("a field goes beyond its end"))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `len` bytes as a part of their own.
    pub(super) fn part(&mut self, len: usize) -> Result<Reader<'a>, CodecError> {
        Ok(Reader { object: self.object, rest: self.bytes(len)? })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or_else(|| self.malformed("a field goes beyond its end"))?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }

    /// `N` bytes that mean nothing yet.
    pub(super) fn zero<const N: usize>(&mut self) -> Result<(), CodecError> {
        if self.array()? == [0; N] { Ok(()) } else { Err(self.newer("a reserved field".into())) }
    }

    /// A yes or no.
    pub(super) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("a flag is neither 0 nor 1")),
        }
    }

    /// The number of entries that follow, at least `entry_bytes` long each: never more than the body has room for, so
    /// it is safe to allocate for them.
    pub(super) fn count(&mut self, entry_bytes: usize) -> Result<usize, CodecError> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / entry_bytes {
            return Err(self.malformed("a count goes beyond its end"));
        }
        Ok(count)
    }

    /// A text of up to `max` bytes.
    pub(super) fn text(&mut self, max: usize) -> Result<String, CodecError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(CodecError::TooLarge { object: self.object, what: "a text's bytes", limit: max });
        }
        let bytes = self.bytes(len)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    /// Nothing may follow what was read.
    pub(super) fn end(&self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("bytes follow its end")) }
    }
}

/// Appends a text of up to `max` bytes (`max` itself fits 16 bits).
pub(super) fn put_text(
    out: &mut Vec<u8>,
    object: ObjectName,
    text: &str,
    max: usize,
) -> Result<(), CodecError> {
    match u16::try_from(text.len()) {
        Ok(len) if text.len() <= max => {
            out.put_u16_le(len);
            out.put_slice(text.as_bytes());
            Ok(())
        }
        _ => Err(CodecError::TooLarge { object, what: "a text's bytes", limit: max }),
    }
}

/// Appends the number of entries that follow.
pub(super) fn put_count(out: &mut Vec<u8>, count: usize) {
    // Bodies are bounded far below this, and the bound is checked when the object is sealed.
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}
