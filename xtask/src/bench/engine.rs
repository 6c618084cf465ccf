//! What the engine's own program measures of opening, of the map, and of sealing.

use holdfast_e2e::{Error, Result};

use super::{
    ground::{Ground, number},
    line::{Goal, Line, Seen, Unit},
};

const OPEN_CAUSE: &str = "What no root covers yet is replayed entry by entry.";
const MAP_CAUSE: &str = "What was replayed and is in no checkpoint yet is in the memtable, at some 40 bytes an extent. Pages take 17.";

pub const OPEN: [Line; 3] = [
    Line {
        what: "open of 1 TiB with 10 M extents after a crash",
        against: "",
        unit: Unit::Seconds,
        goal: Goal::AtMost(2.0),
        cause: OPEN_CAUSE,
    },
    Line {
        what: "the same with the first read",
        against: "",
        unit: Unit::Seconds,
        goal: Goal::None,
        cause: "",
    },
    Line {
        what: "memory of the map, per extent, all loaded",
        against: "",
        unit: Unit::Bytes,
        goal: Goal::AtMost(20.0),
        cause: MAP_CAUSE,
    },
];

/// A volume of many extents.
pub fn open(ground: &mut Ground) -> Result<Vec<Seen>> {
    let directory = scratch()?;
    let place = directory.path().display().to_string();
    let json = ground.engine(&["open", &place, &ground.scale.extents.to_string()])?;
    let [open, first_read] = ["open_ms", "open_and_first_read_ms"].map(|name| number(&json, name));
    Ok(vec![
        Seen::Numbers(open? / 1e3, None),
        Seen::Numbers(first_read? / 1e3, None),
        Seen::Numbers(number(&json, "resident_bytes_per_extent")?, None),
    ])
}

const fn rate(what: &'static str, against: &'static str) -> Line {
    Line { what, against, unit: Unit::BytesPerSecond, goal: Goal::None, cause: "" }
}

pub const CODEC: [Line; 4] = [
    rate("sealing with LZ4 and AES, one processor", "with a checksum only"),
    rate("sealing with LZ4 and a checksum, one processor", "with a checksum only"),
    rate("sealing with AES, one processor", "with a checksum only"),
    rate("opening with LZ4 and AES, one processor", "with a checksum only"),
];

/// Chunks that LZ4 makes half as large.
pub fn codec(ground: &mut Ground) -> Result<Vec<Seen>> {
    let json = ground.engine(&["codec"])?;
    let of = |layer: &str, what: &str| number(&json[layer], what);
    let line = |layer: &str, what: &str| -> Result<Seen> {
        Ok(Seen::Numbers(of(layer, what)?, Some(of("checksum", what)?)))
    };
    Ok(vec![
        line("lz4_aes", "encode_bytes_per_s")?,
        line("checksum_lz4", "encode_bytes_per_s")?,
        line("aes", "encode_bytes_per_s")?,
        line("lz4_aes", "decode_bytes_per_s")?,
    ])
}

/// A directory for one measurement.
pub fn scratch() -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("holdfast-bench-")
        .tempdir()
        .map_err(|source| Error::System { what: "making a temporary directory", source })
}
