"""How results are drawn: colours, text, boxes, masks, keypoints, label maps and panels."""
