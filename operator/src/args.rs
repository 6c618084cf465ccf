//! The command line of `holdfast-operator`.

use std::time::Duration;

use clap::Parser;
use holdfast_api::HumanDuration;

use crate::context::Settings;

/// Reconciles Holdfast's policies, archive targets and restores.
#[derive(Debug, Parser)]
#[command(name = "holdfast-operator", version)]
pub struct Args {
    /// The namespace of Holdfast itself.
    #[arg(long, env = "HOLDFAST_NAMESPACE", default_value = "holdfast-system")]
    pub namespace: String,
    /// The image of the Jobs.
    #[arg(long, env = "HOLDFAST_IMAGE")]
    pub image: String,
    /// When the kubelet pulls the image of the Jobs: Always, IfNotPresent or Never.
    #[arg(long, env = "HOLDFAST_IMAGE_PULL_POLICY")]
    pub image_pull_policy: Option<String>,
    /// Secrets with which the kubelet pulls the image of the Jobs; may be repeated.
    #[arg(long = "image-pull-secret", env = "HOLDFAST_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// The directory on every node that holds file: pools; Jobs mount it at the same path and run as root.
    #[arg(long, env = "HOLDFAST_POOL_HOST_PATH")]
    pub pool_host_path: Option<String>,
    /// The Secret with the pools of live volumes.
    #[arg(long, env = "HOLDFAST_POOLS_SECRET", default_value = "holdfast-pools")]
    pub pools_secret: String,
    /// How often a target is looked through for points that came or went, such as 5m.
    #[arg(long, env = "HOLDFAST_TARGET_INTERVAL", default_value = "5m")]
    pub target_interval: HumanDuration,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, env = "HOLDFAST_HEALTH_ADDR", default_value = ":9809")]
    pub health_addr: String,
    /// This replica's name; the pod's name.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
}

impl Args {
    /// The settings that reconciles see.
    pub fn settings(&self) -> Settings {
        Settings {
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            image_pull_policy: self.image_pull_policy.clone(),
            image_pull_secrets: self.image_pull_secrets.clone(),
            pool_host_path: self.pool_host_path.clone(),
            pools_secret: self.pools_secret.clone(),
            target_interval: self.target_interval.to_std().max(Duration::from_secs(10)),
            identity: self.identity.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed_and_its_defaults_hold() {
        Args::command().debug_assert();
        let args =
            Args::try_parse_from(["holdfast-operator", "--image", "holdfast:0.1.0", "--identity", "a"])
                .expect("the least that is needed");
        let settings = args.settings();
        assert_eq!(settings.namespace, "holdfast-system");
        assert_eq!(settings.target_interval, Duration::from_secs(300));
    }
}
