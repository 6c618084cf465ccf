//! The engine's volume as a block device.

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_engine::log::LogError;
use holdfast_engine::store::StoreError;
use holdfast_engine::volume::{Over, Volume, VolumeError};

use super::device::{BlockDevice, DeviceError};

#[async_trait]
impl BlockDevice for Volume {
    fn size_bytes(&self) -> u64 {
        Volume::size_bytes(self)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError> {
        Ok(self.read_pieces(offset, u64::from(len)).await?)
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        // The volume keeps the data until the log has it; the caller's memory is a slot that is used again.
        Ok(Volume::write(self, offset, Bytes::copy_from_slice(data)).await?)
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        Ok(Volume::discard(self, offset, len).await?)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(Volume::flush(self).await?)
    }
}

impl From<VolumeError> for DeviceError {
    fn from(error: VolumeError) -> DeviceError {
        match &error {
            VolumeError::Over { reason: Over::Superseded { .. } | Over::Fenced | Over::Closed, .. } => {
                DeviceError::Fenced
            }
            VolumeError::NotCommitted { reason, .. } | VolumeError::Log { reason, .. }
                if matches!(**reason, LogError::Store(StoreError::Full { .. })) =>
            {
                DeviceError::NoSpace(error.to_string())
            }
            VolumeError::Store { reason: StoreError::Full { .. }, .. } => {
                DeviceError::NoSpace(error.to_string())
            }
            VolumeError::Over { reason: Over::Broken { .. }, .. }
            | VolumeError::OutOfRange { .. }
            | VolumeError::NotCommitted { .. }
            | VolumeError::Illegal { .. }
            | VolumeError::Read { .. }
            | VolumeError::Map { .. }
            | VolumeError::Log { .. }
            | VolumeError::Codec { .. }
            | VolumeError::Store { .. }
            | VolumeError::NoAnswer { .. }
            | VolumeError::Buffer { .. } => DeviceError::Io(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_engine::ids::VolumeId;

    use super::*;

    fn errno(error: VolumeError) -> i32 {
        DeviceError::from(error).errno()
    }

    #[test]
    fn a_full_store_is_enospc_and_everything_else_is_eio() {
        let volume = VolumeId([1; 16]);
        let full = || StoreError::Full { key: "log/1".into() };
        let away = || StoreError::Unavailable { key: "log/1".into(), reason: "timed out".into() };
        let log = |store| Arc::new(LogError::Store(store));
        assert_eq!(errno(VolumeError::NotCommitted { volume, reason: log(full()) }), libc::ENOSPC);
        assert_eq!(errno(VolumeError::Store { volume, reason: full() }), libc::ENOSPC);
        assert_eq!(errno(VolumeError::Log { volume, reason: log(away()) }), libc::EIO);
        assert_eq!(errno(VolumeError::Over { volume, reason: Over::Fenced }), libc::EIO);
    }
}
