"""The nodes of NMS in ONNX's text form; :mod:`deploykit.export.nms.graph` says what they do and appends them.

``{conf}`` and ``{iou}`` stand for the stored thresholds, and 1 and 6 are ONNX's numbers of float32 and int32. A body is
``START``, one of ``GRAPH``, ``BASIC`` and ``ROTATED``, which give ``kept (B,k)`` of 0 and 1, and ``END``, followed by
what the outputs ask for.
"""

from __future__ import annotations

__all__ = ["ANGLES", "APARTS", "BASIC", "COEFFICIENTS", "END", "GRAPH", "KEYPOINTS", "ROTATED", "START"]

START = """
    is_one = Greater(scores, {conf})
    over = Greater(all_scores, {conf})
    over_number = Cast<to = 6>(over)
    num_candidates = ReduceSum<keepdims = 1>(over_number, axis1)
    one_number = Cast<to = 1>(is_one)
"""

GRAPH = """
    live = Where(is_one, scores, minus_one)
    label_row = Unsqueeze(labels, axis1)
    live_row = Unsqueeze(live, axis1)
    of_class = Equal(label_row, classes)
    per_class = Where(of_class, live_row, minus_one)
    near, far = Split<axis = 2, num_outputs = 2>(boxes)
    sides = Sub(far, near)
    least_side = ReduceMin<keepdims = 1>(sides, axis2)
    has_area = Greater(least_side, zero)
    overlapping = Where(has_area, boxes, zero)
    selected = NonMaxSuppression(overlapping, per_class, most, {iou}, zero1)
    place = Gather<axis = 1>(selected, batch_and_box)
    shape = Shape(scores)
    nothing = ConstantOfShape(shape)
    count = Shape<start = 0, end = 1>(place)
    marks = ConstantOfShape<value = float[1] {{1.0}}>(count)
    kept = ScatterND(nothing, place, marks)
"""

BASIC = """
    x1, y1, x2, y2 = Split<axis = 2, num_outputs = 4>(boxes)
    width = Sub(x2, x1)
    height = Sub(y2, y1)
    area = Mul(width, height)
    other_x1 = Transpose<perm = [0, 2, 1]>(x1)
    other_y1 = Transpose<perm = [0, 2, 1]>(y1)
    other_x2 = Transpose<perm = [0, 2, 1]>(x2)
    other_y2 = Transpose<perm = [0, 2, 1]>(y2)
    other_area = Transpose<perm = [0, 2, 1]>(area)
    left = Max(x1, other_x1)
    top = Max(y1, other_y1)
    right = Min(x2, other_x2)
    bottom = Min(y2, other_y2)
    across = Sub(right, left)
    down = Sub(bottom, top)
    across_0 = Max(across, zero)
    down_0 = Max(down, zero)
    inter = Mul(down_0, across_0)
    areas = Add(area, other_area)
    union = Sub(areas, inter)
    overlap = Div(inter, union)
    too_much = Greater(overlap, {iou})
    label_column = Unsqueeze(labels, axis2)
    label_row = Unsqueeze(labels, axis1)
    same = Equal(label_column, label_row)
    better = Less(rank_column, rank_row)
    rivals = And(too_much, same)
    beats = And(rivals, better)
    beats_number = Cast<to = 1>(beats)
    candidates = Unsqueeze(one_number, axis1)
    settled = Loop(rounds, go_on, candidates)<body = one_round
        (int64 i, bool running, float[b, one, k] before) => (bool more, float[b, one, k] after)
    {{
        hits = MatMul(before, beats_number)
        hit = Greater(hits, half)
        after = Where(hit, zero, candidates)
        change = Sub(after, before)
        size = Abs(change)
        largest = ReduceMax<keepdims = 0>(size)
        more = Greater(largest, zero_scalar)
    }}>
    kept = Squeeze(settled, axis1)
"""

ROTATED = """
    x, y, w, h = Split<axis = 2, num_outputs = 4>(boxes)
    w_2 = Mul(w, w)
    h_2 = Mul(h, h)
    product = Mul(w, h)
    long = Div(w_2, twelve)
    short = Div(h_2, twelve)
    root = Div(product, twelve)
    cos = Cos(angles)
    sin = Sin(angles)
    least_side = Min(w, h)
    solid = Greater(least_side, zero)
    other_x = Transpose<perm = [0, 2, 1]>(x)
    other_y = Transpose<perm = [0, 2, 1]>(y)
    other_long = Transpose<perm = [0, 2, 1]>(long)
    other_short = Transpose<perm = [0, 2, 1]>(short)
    other_root = Transpose<perm = [0, 2, 1]>(root)
    other_cos = Transpose<perm = [0, 2, 1]>(cos)
    other_sin = Transpose<perm = [0, 2, 1]>(sin)
    other_solid = Transpose<perm = [0, 2, 1]>(solid)
    cos_cos = Mul(cos, other_cos)
    sin_sin = Mul(sin, other_sin)
    sin_cos = Mul(sin, other_cos)
    cos_sin = Mul(cos, other_sin)
    turn_cos = Add(cos_cos, sin_sin)
    turn_sin = Sub(sin_cos, cos_sin)
    turn_cos_2 = Mul(turn_cos, turn_cos)
    turn_sin_2 = Mul(turn_sin, turn_sin)
    own_det = Mul(long, short)
    other_det = Mul(other_long, other_short)
    dets = Add(own_det, other_det)
    long_short = Mul(long, other_short)
    short_long = Mul(short, other_long)
    long_long = Mul(long, other_long)
    short_short = Mul(short, other_short)
    crossed = Add(long_short, short_long)
    aligned = Add(long_long, short_short)
    crossed_part = Mul(crossed, turn_cos_2)
    aligned_part = Mul(aligned, turn_sin_2)
    most_det = Add(dets, crossed_part)
    det = Add(most_det, aligned_part)
    dx = Sub(x, other_x)
    dy = Sub(y, other_y)
    {own_apart}
    {other_apart}
    apart = Add(own_apart, other_apart)
    apart_share = Div(apart, det)
    quarter_apart = Div(apart_share, four)
    roots = Mul(root, other_root)
    four_roots = Mul(roots, four)
    det_ratio = Div(det, four_roots)
    log_ratio = Log(det_ratio)
    half_log = Div(log_ratio, two)
    signed_distance = Add(quarter_apart, half_log)
    distance = Max(signed_distance, zero)
    exponent = Neg(distance)
    likeness = Exp(exponent)
    unlikeness = Sub(unit, likeness)
    gap = Sqrt(unlikeness)
    overlap = Sub(unit, gap)
    near = Greater(overlap, {iou})
    both_solid = And(solid, other_solid)
    too_much = And(near, both_solid)
    label_column = Unsqueeze(labels, axis2)
    label_row = Unsqueeze(labels, axis1)
    same = Equal(label_column, label_row)
    better = Less(rank_column, rank_row)
    rivals = And(too_much, same)
    beats = And(rivals, better)
    beats_number = Cast<to = 1>(beats)
    most_beats = ReduceMax<keepdims = 0>(beats_number, axis1)
    stays = Sub(unit, most_beats)
    kept = Mul(one_number, stays)
"""

_APART = """
    {who}_x_cos = Mul(dx, {cos})
    {who}_y_sin = Mul(dy, {sin})
    {who}_y_cos = Mul(dy, {cos})
    {who}_x_sin = Mul(dx, {sin})
    {who}_along = Add({who}_x_cos, {who}_y_sin)
    {who}_across = Sub({who}_y_cos, {who}_x_sin)
    {who}_along_2 = Mul({who}_along, {who}_along)
    {who}_across_2 = Mul({who}_across, {who}_across)
    {who}_along_part = Mul({short}, {who}_along_2)
    {who}_across_part = Mul({long}, {who}_across_2)
    {who}_apart = Add({who}_along_part, {who}_across_part)
"""
APARTS = {
    "own_apart": _APART.format(who="own", cos="cos", sin="sin", long="long", short="short"),
    "other_apart": _APART.format(who="other", cos="other_cos", sin="other_sin", long="other_long", short="other_short"),
}

END = """
    ordered = Mul(kept, countdown)
    padded = Pad(ordered, room)
    top_order, top_place = TopK<axis = 1, largest = 1, sorted = 1>(padded, most)
    used = Greater(top_order, zero)
    where = Where(used, top_place, zero_index)
    where_1 = Unsqueeze(where, axis2)
    used_1 = Unsqueeze(used, axis2)
    used_number = Cast<to = 6>(used)
    num_dets = ReduceSum<keepdims = 1>(used_number, axis1)
    some_boxes = GatherND<batch_dims = 1>(boxes, where_1)
    out_boxes = Where(used_1, some_boxes, zero)
    some_scores = GatherND<batch_dims = 1>(scores, where_1)
    out_scores = Where(used, some_scores, zero)
    some_labels = GatherND<batch_dims = 1>(labels, where_1)
    used_labels = Where(used, some_labels, zero_index)
    out_labels = Cast<to = 6>(used_labels)
"""

KEYPOINTS = """
    used_2 = Unsqueeze(used_1, axis3)
    some_keypoints = GatherND<batch_dims = 1>(keypoints, where_1)
    out_keypoints = Where(used_2, some_keypoints, zero)
"""

COEFFICIENTS = """
    some_coefficients = GatherND<batch_dims = 1>(coefficients, where_1)
    out_coefficients = Where(used_1, some_coefficients, zero)
"""

ANGLES = """
    some_angles = GatherND<batch_dims = 1>(angles, where_1)
    used_angles = Where(used_1, some_angles, zero)
    out_angles = Squeeze(used_angles, axis2)
"""
