//! SIGKILL of the node plugin under load.

use std::time::Duration;

use holdfast_e2e::{
    Error, Result,
    fio::{self, End, Load},
    interrupt::{self, Seen as Waited},
};

use super::{
    ground::{DIRECTORY, Ground},
    line::{Goal, Line, Seen, Unit},
};

const KILLS: u32 = 4;
/// The load goes on for so long between kills.
const BETWEEN: Duration = Duration::from_millis(1500);

pub const LINES: [Line; 2] = [
    Line {
        what: "longest stall of 4 KiB random writes, QD 16, over 4 SIGKILLs of the node plugin",
        against: "",
        unit: Unit::Seconds,
        goal: Goal::AtMost(0.5),
        cause: "The successor opens the volume's pool and replays its log before it serves the first request.",
    },
    Line { what: "I/O errors meanwhile", against: "", unit: Unit::Count, goal: Goal::AtMost(0.0), cause: "" },
];

/// Kills, and starts a successor at once, as a kubelet without a back-off would.
pub fn measure(ground: &mut Ground) -> Result<Vec<Seen>> {
    let device = ground.device(DIRECTORY, 256 << 20, &[])?;
    let report = ground.raw_directory().join("killed.json");
    let seconds = (BETWEEN * (KILLS + 2)).as_secs() as u32;
    let load = Load { end: End::Seconds(seconds), ..Load::random("randwrite", 16, 256, seconds) };
    let mut running = fio::start(&device.target(), &load, &report)?;
    for _ in 0..KILLS {
        interrupt::pause(BETWEEN)?;
        ground.site.kill_node();
        ground.site.start_node()?;
    }
    let limit = Duration::from_secs(60);
    let measured = interrupt::until("fio ends", limit, Duration::from_millis(50), || {
        Ok(match running.check() {
            Ok(()) => Waited::NotYet("it runs".into()),
            Err(Error::DaemonEnded { .. }) => Waited::Reached(read(&report)?),
            Err(error) => return Err(error),
        })
    })?;
    ground.remove(&device)?;
    let stall = measured.longest.as_secs_f64();
    Ok(vec![Seen::Numbers(stall, None), Seen::Numbers(measured.errors as f64, None)])
}

fn read(report: &std::path::Path) -> Result<fio::Measured> {
    let text = std::fs::read_to_string(report).map_err(|source| Error::File {
        action: "read",
        path: report.into(),
        source,
    })?;
    fio::measured(&text)
}
