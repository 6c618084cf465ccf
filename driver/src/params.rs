//! The parameters of a StorageClass.

use std::collections::HashMap;

use holdfast_engine::codec::Codec;
use tonic::Status;

/// Parameters with this prefix belong to Kubernetes' sidecars. They take out those they know; the name and namespace
/// of the claim come through when the provisioner runs with `--extra-create-metadata`.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

/// The parameter that names the file system, for callers other than the provisioner (which moves it into the
/// capability).
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";

/// The parameter that says when an fsync returns; also its name among a volume's parameters in the pool.
pub const DURABILITY: &str = "durability";

/// When an fsync returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When the store has it.
    #[default]
    Remote,
    /// When a journal on the node's disk has it.
    Journal,
}

impl Durability {
    /// Its name in a StorageClass.
    pub fn name(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Journal => "journal",
        }
    }

    /// The durability with this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Remote, Self::Journal].into_iter().find(|durability| durability.name() == name)
    }
}

/// What a StorageClass can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// The pool, by its local name.
    pub pool: Option<String>,
    /// The file system, where the capability names none.
    pub fs_type: Option<String>,
    /// The compression.
    pub codec: Codec,
    /// When an fsync returns.
    pub durability: Durability,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { pool: None, fs_type: None, codec: Codec::Lz4, durability: Durability::Remote }
    }
}

/// Reads the parameters that can be changed of a volume that exists: those of a VolumeAttributesClass.
pub fn mutable(given: &HashMap<String, String>) -> Result<Option<Durability>, Status> {
    let mut durability = None;
    for (name, value) in given {
        let read = if name == DURABILITY { Durability::parse(value) } else { None };
        durability = Some(read.ok_or_else(|| {
            Status::invalid_argument(format!(
                "the VolumeAttributesClass sets {name} to {value:?}; it can set durability, to remote or journal"
            ))
        })?);
    }
    Ok(durability)
}

impl Parameters {
    /// Reads the parameters. One that is unknown or has an impossible value is named in an `INVALID_ARGUMENT`.
    pub fn parse(given: &HashMap<String, String>) -> Result<Self, Status> {
        let mut parameters = Self::default();
        for (name, value) in given {
            match name.as_str() {
                "pool" => parameters.pool = Some(value.clone()),
                "codec" => {
                    parameters.codec = match value.as_str() {
                        "lz4" => Codec::Lz4,
                        "zstd" => Codec::Zstd,
                        "raw" => Codec::Raw,
                        _ => return Err(impossible(name, value, "lz4, zstd or raw")),
                    }
                }
                DURABILITY => {
                    parameters.durability = Durability::parse(value)
                        .ok_or_else(|| impossible(name, value, "remote or journal"))?;
                }
                FS_TYPE => parameters.fs_type = Some(value.clone()),
                sidecars if sidecars.starts_with(SIDECAR_PREFIX) => {}
                _ => {
                    return Err(Status::invalid_argument(format!(
                        "the StorageClass sets {name:?}, which is no parameter; known are pool, codec, durability \
                         and {FS_TYPE}"
                    )));
                }
            }
        }
        Ok(parameters)
    }
}

fn impossible(name: &str, value: &str, possible: &str) -> Status {
    Status::invalid_argument(format!("the StorageClass sets {name} to {value:?}; it can be {possible}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[(&str, &str)]) -> Result<Parameters, Status> {
        Parameters::parse(&given.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn every_parameter_is_read() {
        let read = parse(&[
            ("pool", "fast"),
            ("codec", "zstd"),
            ("durability", "journal"),
            ("csi.storage.k8s.io/fstype", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ])
        .expect("all are known");
        assert_eq!(
            read,
            Parameters {
                pool: Some("fast".into()),
                fs_type: Some("xfs".into()),
                codec: Codec::Zstd,
                durability: Durability::Journal
            }
        );
    }

    #[test]
    fn the_durability_can_be_changed_and_nothing_else() {
        let mutable =
            |name: &str, value: &str| mutable(&HashMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(mutable("durability", "journal").expect("known"), Some(Durability::Journal));
        for (name, value) in [("durability", "none"), ("codec", "zstd")] {
            let status = mutable(name, value).expect_err("it cannot be set");
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(name), "{}", status.message());
        }
        assert_eq!(super::mutable(&HashMap::new()).expect("nothing is wrong"), None);
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let status = parse(&[("pool", "fast"), ("poool", "x")]).expect_err("poool is unknown");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains("\"poool\""), "{}", status.message());
    }

    #[test]
    fn an_impossible_value_is_named_with_the_possible_ones() {
        let status = parse(&[("codec", "gzip")]).expect_err("gzip is no codec");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(
            status.message().contains("gzip") && status.message().contains("zstd"),
            "{}",
            status.message()
        );
    }
}
