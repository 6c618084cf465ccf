//! PostgreSQL on ext4 under pgbench, through kills of node plugin and keeper, and through the loss of its node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;

use crate::postgres::{Programs, Server};
use crate::site::{MIB, Site, filesystem};
use crate::{ALONE, for_a_while};

const KILLS: usize = 21;
const CLIENTS: &str = "8";

/// pgbench's own transaction, which also enters its number into the ledger.
const SCRIPT: &str = r"\set n :n + 1
\set aid random(1, 100000 * :scale)
\set bid random(1, 1 * :scale)
\set tid random(1, 10 * :scale)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO ledger (client, n) VALUES (:client_id, :n);
COMMIT;
";

/// pgbench at work. Dropping it kills it.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Load {
    /// Loads the server until it is gone; what was acknowledged is noted in `logs`.
    fn start(server: &Server, programs: &Programs, logs: &Path) -> Self {
        fs::create_dir(logs).unwrap();
        programs.give(logs);
        let script = logs.join("script.sql");
        fs::write(&script, SCRIPT).unwrap();
        let log = fs::File::create(logs.join("out")).unwrap();
        let child = server
            .client("pgbench")
            .args(["--no-vacuum", "--jobs=1", "--time=3600", "--define=n=0", "--log"])
            .arg(format!("--client={CLIENTS}"))
            .arg(format!("--log-prefix={}", logs.join("log").display()))
            .arg("--file")
            .arg(script)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn goes_on(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

/// How many transactions of each client were acknowledged, and how long the longest took. A line of pgbench's log is
/// written when the server has answered; its columns are the client, a number, and the time in microseconds.
fn acknowledged(logs: &Path) -> (BTreeMap<String, u64>, Duration) {
    let (mut counts, mut longest) = (BTreeMap::new(), Duration::ZERO);
    for entry in fs::read_dir(logs).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("log.") {
            continue;
        }
        for line in fs::read_to_string(path).unwrap().lines() {
            let columns: Vec<&str> = line.split(' ').collect();
            *counts.entry(columns[0].to_owned()).or_default() += 1;
            longest = longest.max(Duration::from_micros(columns[2].parse().unwrap()));
        }
    }
    (counts, longest)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_keeps_every_acknowledged_transaction_through_kills_and_the_loss_of_its_node() {
    let _alone = ALONE.lock().await;
    let programs = Programs::find();
    let capability = filesystem(Mode::SingleNodeWriter);
    let mut site = Site::start().await;
    fs::set_permissions(site.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let (mut first, mut second) = (site.node("n1").await, site.node("n2").await);
    let volume = site.create_sized("pg", 512 * MIB).await;
    let context = site.attach(&volume, &first, &capability).await.unwrap();
    let target = first.publish(&volume, &context, &capability).await.unwrap();
    programs.init(&target.join("pg"));
    let mut server = Server::start(&programs, &target.join("pg"), &site.path("run-1"));
    server.run("pgbench", &["--initialize", "--scale=2", "--quiet"]);
    server.query("create table ledger (client int, n bigint, primary key (client, n))");

    let logs = site.path("logs");
    let mut load = Load::start(&server, &programs, &logs);
    for kill in 0..KILLS {
        for_a_while(kill).await;
        if kill % 3 == 2 {
            first.restart_keeper()
        } else {
            first.restart().await
        }
        let said = || fs::read_to_string(logs.join("out")).unwrap();
        assert!(load.goes_on(), "pgbench has noticed kill {kill}: {}", said());
    }

    // The node is lost: its pool, its memory and its processes. It is detached by force.
    first.keeper.kill();
    first.process.kill();
    load.0.wait().unwrap();
    server.kill();
    site.detach(&volume, &first).await;
    let context = site.attach(&volume, &second, &capability).await.unwrap();
    let target = second.publish(&volume, &context, &capability).await.unwrap();
    let server = Server::start(&programs, &target.join("pg"), &site.path("run-2"));

    let (counts, longest) = acknowledged(&logs);
    let present: BTreeSet<String> = server.query("select client, n from ledger").into_iter().collect();
    let mut total = 0;
    for (client, count) in &counts {
        total += count;
        let missing = (1..=*count).find(|n| !present.contains(&format!("{client}|{n}")));
        assert_eq!(missing, None, "a transaction of client {client} was acknowledged and is lost");
    }
    server.run("pg_amcheck", &["--all", "--install-missing", "--heapallindexed"]);
    let sums = server.query(
        "select (select sum(abalance) from pgbench_accounts) - (select sum(delta) from pgbench_history), \
         (select sum(tbalance) from pgbench_tellers) - (select sum(delta) from pgbench_history), \
         (select sum(bbalance) from pgbench_branches) - (select sum(delta) from pgbench_history)",
    );
    assert_eq!(sums, ["0|0|0"], "pgbench's books do not balance");
    println!(
        "{KILLS} kills and the loss of the node: {total} transactions acknowledged, {} present; longest {longest:?}",
        present.len()
    );
    assert!(total > 100, "only {total} transactions ran");

    server.stop();
    second.unpublish(&volume).await.unwrap();
    // The lost node comes back, and can be cleaned up.
    first.power_on().await;
    first.unpublish(&volume).await.unwrap();
}
