//! Sizes of volumes.

use holdfast_csi_proto::csi::CapacityRange;
use holdfast_engine::ids::BLOCK_BYTES;
use tonic::Status;

/// The size of a volume that is asked for without one.
pub const DEFAULT_BYTES: u64 = 10 << 30;

/// The largest volume.
pub const MAX_BYTES: u64 = 16 << 40;

/// The smallest volume.
pub const MIN_BYTES: u64 = 1 << 20;

/// The sizes that a request allows, in bytes, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// At least this.
    pub required: u64,
    /// At most this.
    pub limit: u64,
}

impl Sizes {
    /// Reads a capacity range; a field that is zero sets no bound.
    pub fn parse(range: Option<&CapacityRange>) -> Result<Self, Status> {
        let bound = |name: &str, bytes: i64| {
            u64::try_from(bytes)
                .map_err(|_| Status::out_of_range(format!("{name} is negative: {bytes} bytes")))
        };
        let required = bound("required_bytes", range.map_or(0, |range| range.required_bytes))?;
        let limit = match bound("limit_bytes", range.map_or(0, |range| range.limit_bytes))? {
            0 => u64::MAX,
            limit => limit,
        };
        if limit < required {
            return Err(Status::out_of_range(format!(
                "limit_bytes ({limit}) is less than required_bytes ({required})"
            )));
        }
        Ok(Self { required, limit })
    }

    /// The size to make a volume that must have at least `floor` bytes: what is required, else `default`, in whole
    /// blocks.
    pub fn choose(self, floor: u64, default: u64) -> Result<u64, Status> {
        let wanted = if self.required == 0 { default.min(self.limit) } else { self.required };
        let size = wanted.max(floor).max(MIN_BYTES).next_multiple_of(BLOCK_BYTES);
        if size > MAX_BYTES {
            return Err(Status::out_of_range(format!(
                "a volume of {size} bytes is asked for; the largest has {MAX_BYTES}"
            )));
        }
        if size > self.limit {
            return Err(Status::out_of_range(format!(
                "at most {} bytes are allowed, but the volume needs at least {size}",
                self.limit
            )));
        }
        Ok(size)
    }

    /// Whether a volume of `bytes` is what was asked for.
    pub fn allow(self, bytes: u64) -> bool {
        (self.required..=self.limit).contains(&bytes)
    }
}

/// A size as CSI writes it.
pub fn to_csi(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(required_bytes: i64, limit_bytes: i64) -> Result<Sizes, Status> {
        Sizes::parse(Some(&CapacityRange { required_bytes, limit_bytes }))
    }

    fn choose(required: i64, limit: i64, floor: u64) -> Result<u64, tonic::Code> {
        sizes(required, limit).and_then(|sizes| sizes.choose(floor, DEFAULT_BYTES)).map_err(|s| s.code())
    }

    #[test]
    fn the_size_is_what_is_required_in_whole_blocks() {
        assert_eq!(choose(1 << 30, 0, 0), Ok(1 << 30));
        assert_eq!(choose((1 << 30) + 1, 0, 0), Ok((1 << 30) + 4096));
        assert_eq!(choose(1, 0, 0), Ok(MIN_BYTES));
        assert_eq!(choose(0, 0, 0), Ok(DEFAULT_BYTES));
        assert_eq!(choose(0, 1 << 30, 0), Ok(1 << 30));
        assert_eq!(choose(1 << 30, 0, 2 << 30), Ok(2 << 30));
    }

    #[test]
    fn a_size_that_cannot_be_is_out_of_range() {
        let out = Err(tonic::Code::OutOfRange);
        assert_eq!(choose(-1, 0, 0), out);
        assert_eq!(choose(2, 1, 0), out);
        assert_eq!(choose((1 << 30) + 1, (1 << 30) + 2, 0), out);
        assert_eq!(choose((16 << 40) + 1, 0, 0), out);
        assert_eq!(choose(0, 1 << 30, 2 << 30), out);
        assert_eq!(choose(0, 4096, 0), out);
    }

    #[test]
    fn an_existing_volume_is_compared_with_both_bounds() {
        let sizes = sizes(10, 20).expect("valid");
        assert!(sizes.allow(10) && sizes.allow(20) && !sizes.allow(9) && !sizes.allow(21));
        assert!(Sizes::parse(None).expect("valid").allow(5));
    }
}
