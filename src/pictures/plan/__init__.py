"""Finds the images or videos to predict, and the file to write for each."""

from .checks import check_targets as check_targets
from .images import plan_images as plan_images
from .jobs import PIPE as PIPE
from .jobs import Job as Job
from .jobs import Jobs as Jobs
from .videos import plan_pipe as plan_pipe
from .videos import plan_videos as plan_videos
