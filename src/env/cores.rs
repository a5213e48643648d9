//! Core lists and masks as operators write them, pinning, NUMA nodes.

use std::fmt;
use std::str::FromStr;

/// Largest core number accepted in a list: a bound against typing errors such as `0-99999999`.
pub const MAX_CORE: usize = 1023;

/// A set of cores in ascending order, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreList(Vec<usize>);

/// Why a core list or mask is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    #[error("core list is empty; give cores such as `0-3,8` or a mask such as `0xF`")]
    Empty,
    #[error("`{0}` is not a core, a range such as `0-3`, or a mask such as `0xF`")]
    Syntax(String),
    #[error("range `{0}` ends before it begins")]
    Backwards(String),
    #[error("core {0} is beyond the largest core number accepted, {MAX_CORE}")]
    TooLarge(usize),
    #[error("core {0} is not among the cores that this process may run on ({1})")]
    NotAvailable(usize, CoreList),
}

impl CoreList {
    /// The cores in ascending order.
    pub fn cores(&self) -> &[usize] {
        &self.0
    }

    /// The cores that this process may run on.
    pub fn available() -> CoreList {
        let cores: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|c| c.id).collect();
        if cores.is_empty() { CoreList(vec![0]) } else { CoreList::from_cores(cores) }
    }

    /// The first `count` cores of this list (all of them if it has fewer).
    pub fn first(&self, count: usize) -> CoreList {
        CoreList(self.0.iter().copied().take(count.max(1)).collect())
    }

    /// Refuses cores that this process may not run on.
    pub fn check_available(&self) -> Result<(), CoreError> {
        let available = CoreList::available();
        match self.0.iter().find(|c| !available.0.contains(c)) {
            Some(&core) => Err(CoreError::NotAvailable(core, available)),
            None => Ok(()),
        }
    }

    fn from_cores(mut cores: Vec<usize>) -> CoreList {
        cores.sort_unstable();
        cores.dedup();
        CoreList(cores)
    }
}

impl FromStr for CoreList {
    type Err = CoreError;

    /// Accepts `0-3,8`, SPDK's bracketed `[0-3,8]`, and masks `0xF`.
    fn from_str(text: &str) -> Result<CoreList, CoreError> {
        let text = text.trim();
        let syntax = || CoreError::Syntax(text.to_string());
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if inner.is_empty() {
            return Err(CoreError::Empty);
        }
        let mut cores = Vec::new();
        if let Some(mask) = inner.strip_prefix("0x").or_else(|| inner.strip_prefix("0X")) {
            if mask.is_empty() || mask.len() > MAX_CORE.div_ceil(4) {
                return Err(syntax());
            }
            for (index, digit) in mask.chars().rev().enumerate() {
                let bits = digit.to_digit(16).ok_or_else(syntax)?;
                cores.extend((0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| index * 4 + bit as usize));
            }
        } else {
            for part in inner.split(',') {
                let number =
                    |t: &str| t.trim().parse::<usize>().map_err(|_| CoreError::Syntax(part.to_string()));
                let (low, high) = match part.split_once('-') {
                    Some((low, high)) => (number(low)?, number(high)?),
                    None => (number(part)?, number(part)?),
                };
                if high < low {
                    return Err(CoreError::Backwards(part.to_string()));
                }
                if high > MAX_CORE {
                    return Err(CoreError::TooLarge(high));
                }
                cores.extend(low..=high);
            }
        }
        if cores.is_empty() {
            return Err(CoreError::Empty);
        }
        Ok(CoreList::from_cores(cores))
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut index = 0;
        while index < self.0.len() {
            let first = self.0[index];
            let mut last = first;
            while index + 1 < self.0.len() && self.0[index + 1] == last + 1 {
                index += 1;
                last = self.0[index];
            }
            let comma = if index + 1 < self.0.len() { "," } else { "" };
            if first == last {
                write!(f, "{first}{comma}")?
            } else {
                write!(f, "{first}-{last}{comma}")?
            }
            index += 1;
        }
        Ok(())
    }
}

/// Pins the calling thread to `core`; false where the kernel refuses.
pub fn pin_to(core: usize) -> bool {
    core_affinity::set_for_current(core_affinity::CoreId { id: core })
}

/// The NUMA node of `core`, 0 where the machine does not say.
pub fn numa_node_of(core: usize) -> usize {
    let Ok(entries) = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")) else { return 0 };
    entries
        .flatten()
        .find_map(|e| {
            e.file_name().to_str().and_then(|n| n.strip_prefix("node")).and_then(|n| n.parse().ok())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> Result<Vec<usize>, CoreError> {
        text.parse::<CoreList>().map(|l| l.0)
    }

    #[test]
    fn lists_masks_and_brackets_name_the_same_cores() {
        assert_eq!(cores("0-3,8"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(cores("[0-1,1]"), Ok(vec![0, 1]));
        assert_eq!(cores("0xF"), Ok(vec![0, 1, 2, 3]));
        assert_eq!(cores("0x105"), Ok(vec![0, 2, 8]));
        assert_eq!("0-3,8".parse::<CoreList>().map(|l| l.to_string()), Ok("0-3,8".into()));
    }

    #[test]
    fn wrong_lists_are_refused_by_name() {
        assert_eq!(cores(""), Err(CoreError::Empty));
        assert_eq!(cores("0x0"), Err(CoreError::Empty));
        assert_eq!(cores("3-1"), Err(CoreError::Backwards("3-1".into())));
        assert_eq!(cores("0-99999"), Err(CoreError::TooLarge(99999)));
        for bad in ["a", "1,,2", "-1", "0x", "0xg", "1-2-3"] {
            assert!(matches!(cores(bad), Err(CoreError::Syntax(_))), "{bad}");
        }
    }
}
