//! A block device in memory, for tests of what lies above it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::device::{BlockDevice, DeviceError};
use super::region::Region;

/// A device whose bytes are a [`Region`], so that it survives the process that serves it.
#[derive(Debug)]
pub struct MemoryDevice {
    region: Arc<Region>,
}

impl MemoryDevice {
    /// A device over the whole of `region`.
    pub fn new(region: Arc<Region>) -> Self {
        MemoryDevice { region }
    }
}

#[async_trait]
impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.region.len() as u64
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError> {
        let mut buf = BytesMut::zeroed(len as usize);
        self.region.read_at(offset as usize, &mut buf);
        Ok(vec![buf.freeze()])
    }

    async fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.region.write_at(offset as usize, data);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.region
            .punch(offset as usize, len as usize)
            .map_err(|errno| DeviceError::Io(format!("punching memory: {errno}")))
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}
