//! The store on disk.
use super::*;
#[derive(Clone)]
pub struct Disk {}
pub struct DiskOptions {}
impl Disk {
    pub(super) fn commit(&self, batch: Batch, durability: Durability) -> Result<()> {
        unimplemented!()
    }
    pub(super) fn row(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        unimplemented!()
    }
    pub(super) fn rows(&self, space: Space, from: Bound<&[u8]>, to: Bound<&[u8]>) -> Rows {
        unimplemented!()
    }
    pub(super) fn disk_bytes(&self) -> u64 {
        unimplemented!()
    }
    pub(super) fn free_bytes(&self) -> Result<u64> {
        unimplemented!()
    }
}
