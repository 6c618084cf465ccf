//! What a claim may ask a volume to be: access mode, file system or raw block.

use holdfast_csi_proto::csi::VolumeCapability;
use holdfast_csi_proto::csi::volume_capability::AccessType;
use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;
use tonic::Status;

use crate::mount::FsType;
use crate::publication::Access;

/// The smallest volume that the file system's mkfs accepts, in bytes.
pub fn min_bytes(fs_type: FsType) -> u64 {
    match fs_type {
        FsType::Ext4 => 1 << 20,
        // mkfs.xfs refuses less since xfsprogs 5.19.
        FsType::Xfs => 300 << 20,
    }
}

/// How a volume appears in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// As a device.
    Block,
    /// As a mounted file system.
    Filesystem {
        /// Which.
        fs_type: FsType,
        /// Options for mount(8) from the StorageClass or the PersistentVolume.
        options: Vec<String>,
    },
}

/// A capability that Holdfast's volumes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// How the volume appears.
    pub form: Form,
    /// What a node may do with it.
    pub access: Access,
    /// Whether only one path on the node may have it (ReadWriteOncePod).
    pub single_path: bool,
}

impl Capability {
    /// Reads a capability. One that no volume of ours has is refused with the reason.
    pub fn parse(capability: &VolumeCapability) -> Result<Self, Status> {
        let form = match &capability.access_type {
            Some(AccessType::Block(_)) => Form::Block,
            Some(AccessType::Mount(mount)) => {
                Form::Filesystem { fs_type: fs_type(&mount.fs_type)?, options: mount.mount_flags.clone() }
            }
            None => return Err(Status::invalid_argument("a volume capability has neither mount nor block")),
        };
        let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, |access| access.mode());
        let (access, single_path) = match mode {
            Mode::SingleNodeWriter | Mode::SingleNodeMultiWriter => (Access::ReadWrite, false),
            Mode::SingleNodeSingleWriter => (Access::ReadWrite, true),
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly => (Access::ReadOnly, false),
            Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
                return Err(Status::invalid_argument(
                    "a volume has one writer: ReadWriteMany is not supported; ReadWriteOnce, ReadWriteOncePod and \
                     ReadOnlyMany are",
                ));
            }
            Mode::Unknown => return Err(Status::invalid_argument("a volume capability has no access mode")),
        };
        Ok(Self { form, access, single_path })
    }

    /// Reads the capability of a request that must have one.
    pub fn required(capability: Option<&VolumeCapability>) -> Result<Self, Status> {
        Self::parse(
            capability.ok_or_else(|| Status::invalid_argument("the request has no volume_capability"))?,
        )
    }

    /// Reads the capabilities of a request that must have at least one.
    pub fn all(capabilities: &[VolumeCapability]) -> Result<Vec<Self>, Status> {
        if capabilities.is_empty() {
            return Err(Status::invalid_argument("the request has no volume_capabilities"));
        }
        capabilities.iter().map(Self::parse).collect()
    }
}

/// The file system called `name`; ext4 for an empty one.
pub fn fs_type(name: &str) -> Result<FsType, Status> {
    name.parse::<FsType>().map_err(|unknown| Status::invalid_argument(unknown.to_string()))
}

#[cfg(test)]
mod tests {
    use holdfast_csi_proto::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn mount(fs_type: &str, mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: fs_type.into(),
                ..MountVolume::default()
            })),
            access_mode: Some(AccessMode { mode: mode.into() }),
        }
    }

    #[test]
    fn access_modes_are_told_apart() {
        for (mode, access, single_path) in [
            (Mode::SingleNodeWriter, Access::ReadWrite, false),
            (Mode::SingleNodeMultiWriter, Access::ReadWrite, false),
            (Mode::SingleNodeSingleWriter, Access::ReadWrite, true),
            (Mode::SingleNodeReaderOnly, Access::ReadOnly, false),
            (Mode::MultiNodeReaderOnly, Access::ReadOnly, false),
        ] {
            let capability = Capability::parse(&mount("", mode)).expect("supported");
            assert_eq!((capability.access, capability.single_path), (access, single_path), "{mode:?}");
        }
    }

    #[test]
    fn several_writers_are_refused_with_what_is_possible() {
        for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeSingleWriter] {
            let status = Capability::parse(&mount("ext4", mode)).expect_err("one writer only");
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains("ReadWriteMany"), "{}", status.message());
        }
    }

    #[test]
    fn raw_block_and_both_file_systems_are_known_and_no_other() {
        let block = VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        };
        assert_eq!(Capability::parse(&block).expect("supported").form, Form::Block);
        for (name, fs_type) in [("", FsType::Ext4), ("ext4", FsType::Ext4), ("xfs", FsType::Xfs)] {
            let form = Capability::parse(&mount(name, Mode::SingleNodeWriter)).expect("supported").form;
            assert_eq!(form, Form::Filesystem { fs_type, options: vec![] });
        }
        let status = Capability::parse(&mount("btrfs", Mode::SingleNodeWriter)).expect_err("unsupported");
        assert!(status.message().contains("btrfs"), "{}", status.message());
    }

    #[test]
    fn a_request_without_capability_is_refused() {
        assert_eq!(Capability::required(None).expect_err("none").code(), tonic::Code::InvalidArgument);
        assert_eq!(Capability::all(&[]).expect_err("none").code(), tonic::Code::InvalidArgument);
    }
}
