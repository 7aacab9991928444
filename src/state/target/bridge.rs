//! A pod from another kernel: its layouts as they can be here, and the jumps from its vdso to this kernel's.

use super::Builder;
use super::error::{Error, Result};
use crate::kernel::vmio::ProcMem;
use crate::state::Tree;
use crate::state::mm::MmLayout;
use std::borrow::Cow;

impl Builder {
    /// The tree as it can be here; the same one if the kernels are.
    pub(super) fn adapted<'t>(&mut self, tree: &'t Tree) -> Result<Cow<'t, Tree>> {
        let Some(foreign) = &self.foreign else { return Ok(Cow::Borrowed(tree)) };
        let mut adapted = tree.clone();
        for mm in &mut adapted.mms {
            let pid = mm.mm.0;
            let (layout, at) =
                foreign.adapt(mm, self.places.get(&pid).copied()).map_err(Error::unfit(pid))?;
            *mm = layout;
            match at {
                Some(at) => self.places.insert(pid, at),
                None => self.places.remove(&pid),
            };
        }
        Ok(Cow::Owned(adapted))
    }

    /// Points the program's vdso at this kernel's. `layout` is the source's; memory is in place.
    pub(super) fn bridge(&self, layout: &MmLayout) -> Result<()> {
        let pid = layout.mm.0;
        let (Some(foreign), Some(at)) = (&self.foreign, self.places.get(&pid)) else { return Ok(()) };
        let host = self.bodies.get(&pid).ok_or(Error::Order("finish a process"))?.host;
        let unfit = Error::unfit(pid);
        let mem = ProcMem::open(host, true).map_err(Error::io(format!("/proc/{host}/mem")))?;
        let image = |range: crate::base::AddrRange| {
            // More than a vdso has: a mapping that happens to begin there.
            let mut bytes = vec![0; range.len().min(64 << 10) as usize];
            match mem.read(range.start, &mut bytes) {
                Ok(_) => Ok(bytes),
                Err(e) => Err(format!("its vdso cannot be read: {}", e.desc())),
            }
        };
        for (at, bytes) in foreign.writes(layout, *at, image).map_err(&unfit)? {
            match mem.write(at, &bytes) {
                Ok(n) if n == bytes.len() => {}
                Ok(_) => return Err(unfit("its vdso is cut short".to_owned())),
                Err(e) => return Err(unfit(format!("its vdso cannot be written: {}", e.desc()))),
            }
        }
        Ok(())
    }
}
