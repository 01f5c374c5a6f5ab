//! Sums in the order in which they were asked for, as a state that is looked at and never waited for.
//!
//! A call that NCCL has answered with "in progress" is not queued on the device yet: nothing more may be asked of the group,
//! and no mark set behind it, until it is. Knows neither NCCL nor a device: a [`Port`] does.

use super::NcclError;
use crate::DeviceBuffer;
use std::collections::VecDeque;

/// What a group can do at once.
pub(super) trait Port {
    type Mark;

    /// Whether everything asked for so far is queued on the device.
    fn settled(&mut self) -> Result<bool, NcclError>;
    /// Asks for one sum.
    fn start(&mut self, buffer: &DeviceBuffer) -> Result<(), NcclError>;
    /// A point on the device behind what is settled.
    fn mark(&mut self) -> Result<Self::Mark, NcclError>;
    /// Whether the device is beyond it.
    fn passed(&mut self, mark: &Self::Mark) -> Result<bool, NcclError>;
}

pub(super) struct Queue<P: Port> {
    pub(super) port: P,
    joined: bool,
    waiting: VecDeque<DeviceBuffer>,
    starting: Option<DeviceBuffer>,
    running: VecDeque<(DeviceBuffer, P::Mark)>,
}

impl<P: Port> Queue<P> {
    pub(super) fn new(port: P) -> Self {
        Self { port, joined: false, waiting: VecDeque::new(), starting: None, running: VecDeque::new() }
    }

    pub(super) fn push(&mut self, buffer: DeviceBuffer) {
        // NCCL has trouble with nothing, and the sum of nothing is there
        if buffer.tensor().numel() > 0 {
            self.waiting.push_back(buffer);
        }
    }

    /// Goes on as far as possible at once; how many sums are still to be done, joining the group counted as one.
    pub(super) fn poll(&mut self) -> Result<usize, NcclError> {
        while self.port.settled()? {
            self.joined = true;
            if let Some(started) = self.starting.take() {
                self.running.push_back((started, self.port.mark()?));
            }
            let Some(next) = self.waiting.pop_front() else { break };
            // kept whatever comes of it: the device may work on it until the group is ended
            let outcome = self.port.start(&next);
            self.starting = Some(next);
            outcome?;
        }
        while let Some((_, mark)) = self.running.front() {
            if !self.port.passed(mark)? {
                break;
            }
            self.running.pop_front();
        }
        Ok(self.waiting.len() + usize::from(self.starting.is_some()) + self.running.len() + usize::from(!self.joined))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    /// A group that does what a test says, on host memory.
    #[derive(Default)]
    struct Script {
        settled: VecDeque<Result<bool, NcclError>>,
        started: Vec<f64>,
        marks: usize,
        passed: usize,
    }

    impl Port for Script {
        type Mark = usize;

        fn settled(&mut self) -> Result<bool, NcclError> {
            self.settled.pop_front().unwrap_or(Ok(true))
        }

        fn start(&mut self, buffer: &DeviceBuffer) -> Result<(), NcclError> {
            assert_eq!(self.started.len(), self.marks, "the last one is not marked yet");
            self.started.push(buffer.tensor().double_value(&[0]));
            Ok(())
        }

        fn mark(&mut self) -> Result<usize, NcclError> {
            self.marks += 1;
            Ok(self.marks)
        }

        fn passed(&mut self, mark: &usize) -> Result<bool, NcclError> {
            Ok(*mark <= self.passed)
        }
    }

    fn buffer(value: f64) -> DeviceBuffer {
        DeviceBuffer::new(&Tensor::full([2], value, (Kind::Float, Device::Cpu))).unwrap()
    }

    #[test]
    fn sums_start_in_order_once_the_group_is_joined() {
        let mut queue = Queue::new(Script { settled: [Ok(false), Ok(true), Ok(false)].into(), ..Script::default() });
        queue.push(buffer(1.0));
        queue.push(buffer(2.0));
        queue.push(DeviceBuffer::new(&Tensor::zeros([0], (Kind::Float, Device::Cpu))).unwrap());
        assert_eq!(queue.poll().unwrap(), 3);
        assert!(queue.port.started.is_empty(), "not joined");
        assert_eq!(queue.poll().unwrap(), 2);
        assert_eq!((&queue.port.started[..], queue.port.marks), (&[1.0][..], 0), "asked for, not yet on the device");
        assert_eq!(queue.poll().unwrap(), 2);
        assert_eq!((&queue.port.started[..], queue.port.marks), (&[1.0, 2.0][..], 2));
        queue.port.passed = 1;
        assert_eq!(queue.poll().unwrap(), 1);
        queue.port.passed = 2;
        assert_eq!(queue.poll().unwrap(), 0);
    }

    #[test]
    fn an_error_of_the_group_is_told_at_the_next_look() {
        let mut queue = Queue::new(Script::default());
        queue.push(buffer(1.0));
        assert_eq!(queue.poll().unwrap(), 1);
        queue.port.settled.push_back(Err(NcclError::Failed { doing: "sum over the group", what: "remote".into() }));
        assert!(queue.poll().unwrap_err().to_string().contains("remote"));
    }
}
