//! What an archive run moves, and what a clone of an archive asks for.

use holdfast_e2e::Result;

use super::{
    engine::scratch,
    ground::{Ground, number},
    line::{Goal, Line, Seen, Unit},
};

pub const LINES: [Line; 4] = [
    Line {
        what: "archive of 1 % changed blocks: bytes read",
        against: "the changed bytes",
        unit: Unit::Bytes,
        goal: Goal::RatioAtMost(1.1),
        cause: "",
    },
    Line {
        what: "archive of 1 % changed blocks: bytes sent",
        against: "the changed bytes",
        unit: Unit::Bytes,
        goal: Goal::RatioAtMost(1.1),
        cause: "",
    },
    Line {
        what: "gets for the first 4 KiB of a cold clone of an archive",
        against: "",
        unit: Unit::Count,
        goal: Goal::AtMost(3.0),
        cause: "",
    },
    Line { what: "gets for opening that clone", against: "", unit: Unit::Count, goal: Goal::None, cause: "" },
];

/// An encrypted archive in a directory.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let directory = scratch()?;
    let place = directory.path().display().to_string();
    let json = ground.engine(&["archive", &place, &ground.scale.mib.to_string()])?;
    let changed = number(&json, "changed_bytes")?;
    Ok(vec![
        Seen::Numbers(number(&json, "read_bytes")?, Some(changed)),
        Seen::Numbers(number(&json, "sent_bytes")?, Some(changed)),
        Seen::Numbers(number(&json, "first_read_gets")?, None),
        Seen::Numbers(number(&json, "open_gets")?, None),
    ])
}
