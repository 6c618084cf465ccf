//! PostgreSQL in a StatefulSet, filled and loaded with pgbench.

use std::time::Duration;

use crate::{Error, Result, images, kind::Cluster, process::Cmd, report};

use super::ensure_namespace;

const MANIFEST: &str = include_str!("../../manifests/postgres.yaml");
const LOAD_LIMIT: Duration = Duration::from_secs(900);
/// The directory of the pod where pgbench leaves its log of transactions.
const LOG: &str = "/tmp/pgbench";

/// A PostgreSQL server whose data are on a Holdfast volume.
#[derive(Debug, Clone, Copy)]
pub struct Postgres<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
}

/// What a run of pgbench saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bench {
    /// Transactions that were committed.
    pub transactions: u64,
    /// Transactions in a second, on average.
    pub per_second: f64,
    /// The longest that one transaction took.
    pub longest: Duration,
}

impl<'a> Postgres<'a> {
    /// The claim of its data.
    pub const CLAIM: &'static str = "data-pg-0";

    /// A server in a namespace, deployed or not.
    pub fn new(cluster: &'a Cluster, namespace: &'a str) -> Self {
        Postgres { cluster, namespace }
    }

    /// Deploys it with a volume of this size, unless the claim is there already.
    pub fn deploy(&self, size: &str) -> Result<()> {
        let image = images::postgres(self.cluster.engine())?;
        ensure_namespace(self.cluster, self.namespace)?;
        self.cluster.apply(
            &MANIFEST.replace("NAMESPACE", self.namespace).replace("IMAGE", &image).replace("SIZE", size),
        )
    }

    /// Waits until it answers.
    pub fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let arguments = ["pods", "--namespace", self.namespace, "--selector=app=pg"];
        self.cluster.until("PostgreSQL is ready", limit, &arguments, |pods| {
            let pod = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null())?;
            let conditions = pod["status"]["conditions"].as_array()?;
            conditions.iter().find(|c| c["type"] == "Ready" && c["status"] == "True").map(drop)
        })
    }

    /// The node that it runs on.
    pub fn node(&self) -> Result<String> {
        let node = self.kubectl().args(["get", "pod/pg-0", "--output=jsonpath={.spec.nodeName}"]).read()?;
        if node.is_empty() { Err(Error::Machine("pod pg-0 is on no node".into())) } else { Ok(node) }
    }

    /// The answer to a query, without decoration.
    pub fn query(&self, sql: &str) -> Result<String> {
        self.exec()
            .args([
                "psql",
                "--username=postgres",
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--command",
                sql,
            ])
            .read()
    }

    /// Makes pgbench's tables: about 15 MB for each unit of `scale`.
    pub fn fill(&self, scale: u32) -> Result<()> {
        self.exec()
            .args(["pgbench", "--username=postgres", "--initialize", "--quiet"])
            .arg(format!("--scale={scale}"))
            .limit(LOAD_LIMIT)
            .run()?;
        Ok(())
    }

    /// Runs pgbench's own transactions for some seconds.
    pub fn bench(&self, clients: u32, seconds: u32) -> Result<Bench> {
        let script = format!(
            "rm -rf {LOG} && mkdir {LOG} && \
             pgbench --username=postgres --no-vacuum --client={clients} --jobs=1 --time={seconds} \
               --log --log-prefix={LOG}/log && \
             echo longest $(sort -n -k3,3 {LOG}/log.* | tail -1 | cut -d' ' -f3)"
        );
        let output = self
            .exec()
            .args(["sh", "-c", &script])
            .limit(Duration::from_secs(u64::from(seconds)) + LOAD_LIMIT)
            .run()?;
        bench(&output.stdout)
            .ok_or_else(|| Error::Answer { from: "pgbench".into(), answer: output.stdout + &output.stderr })
    }

    /// Checks every page and index of every table, and that pgbench's books balance.
    pub fn verify(&self) -> Result<()> {
        self.exec()
            .args(["pg_amcheck", "--username=postgres", "--all", "--install-missing", "--heapallindexed"])
            .limit(LOAD_LIMIT)
            .run()?;
        let sums = self.query(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
             (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)",
        )?;
        let mut columns = sums.split('|');
        let first = columns.next();
        if first.is_some() && columns.all(|sum| Some(sum) == first) {
            report::note(&format!("pgbench's books balance: {sums}"));
            return Ok(());
        }
        Err(Error::Answer { from: "the sums of pgbench's tables".into(), answer: sums })
    }

    /// Forces what is in memory onto the volume.
    pub fn checkpoint(&self) -> Result<()> {
        self.query("checkpoint").map(drop)
    }

    fn kubectl(&self) -> Cmd {
        self.cluster.kubectl().args(["--namespace", self.namespace])
    }

    fn exec(&self) -> Cmd {
        self.kubectl().args(["exec", "pod/pg-0", "--container=postgres", "--"])
    }
}

/// Reads pgbench's report and the line that follows it.
fn bench(report: &str) -> Option<Bench> {
    let after = |prefix: &str| report.lines().find_map(|line| line.trim().strip_prefix(prefix));
    let number = |text: &str| text.split_whitespace().next().map(str::to_owned);
    let microseconds = after("longest ")?.trim().parse().ok()?;
    Some(Bench {
        transactions: number(after("number of transactions actually processed: ")?)?.parse().ok()?,
        per_second: number(after("tps = ")?)?.parse().ok()?,
        longest: Duration::from_micros(microseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pgbenchs_report_is_read() {
        let report = "number of clients: 4\nnumber of transactions actually processed: 8123\n\
                      number of failed transactions: 0 (0.000%)\nlatency average = 14.7 ms\n\
                      tps = 270.531000 (without initial connection time)\nlongest 315000\n";
        let bench = bench(report).unwrap();
        assert_eq!((bench.transactions, bench.longest), (8123, Duration::from_millis(315)));
        assert!((bench.per_second - 270.531).abs() < 1e-9);
    }
}
