#!/bin/bash
# The whole study in the folder it is started in: the user's files, a sweep on them and one on their twin, for the
# head and for the arm, and the comparison of the two. CRYOSWEEP names the program.
set -e
here=$(cd "$(dirname "$0")" && pwd)
cryosweep=${CRYOSWEEP:-cryosweep}
halves="user/consensus_half_a.mrc user/consensus_half_b.mrc"

# 1. What a user has: particles, half maps at their poses, regions of the map. The truth beside them is not used,
#    but that its labels choose the regions, as a person who knows the complex would.
$cryosweep simulate -o user --particles 800 --box-size 64 --pixel-size 5.25 --snr 0.15
$cryosweep reconstruct user/particles.star -o user/consensus
prepare() { # name, label, threshold (SD), smoothing steps
  $cryosweep segment $halves --threshold "$3" --steps "$4" --label user/domains.mrc --label-value "$2" \
    -o "user/$1.mrc" --rest "user/$1_rest.mrc"
  $cryosweep mask "user/$1.mrc" -o "user/$1_mask.mrc" --threshold 0.001 --threshold-unit absolute \
    --dilation-radius 10.5A --soft-padding-width 7A
}
prepare head 3 2 2
prepare arm 4 1.5 3

# 2. The same six masks on the data and on the twin.
sweep() { # domain, study, further choices
  $cryosweep run -m study="$2" mask_base=file mask_base.path="user/$1.mrc" \
    mask.threshold_unit=absolute mask.threshold=0.001 mask.dilation_radius=0,7,28 mask.soft_padding_width=5,20 \
    scoring.threshold_unit=absolute scoring.threshold=0.001 scoring.band_high=11 scoring.jackknife=0 \
    refinement.max_iterations=3 search.audit=0 \
    tracking.enabled=false "${@:3}"
}
star="data.star=user/particles.star"
twin="data=twin $star data.half_a=user/consensus_half_a.mrc data.half_b=user/consensus_half_b.mrc"
twin="$twin data.pose_error_shift=1.4"
neck="fulcrum=interface fulcrum.parts=[user/head_rest.mrc]"
sweep head original_head data=relion $star $neck
sweep head twin_head $twin data.domain=user/head_mask.mrc data.rotation_spread=7 $neck
sweep arm original_arm data=relion $star search=prior
sweep arm twin_arm $twin data.domain=user/arm_mask.mrc data.rotation_spread=6.5 search=prior

# 3. Did the twin know?
python "$here/analyse.py" head arm
