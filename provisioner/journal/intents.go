// SPDX-License-Identifier: Apache-2.0

package journal

import "encoding/json"

// Intent says which claim an image is made for. The provisioner writes it before it makes
// the image, and clears it once the volume is saved.
type Intent struct {
	// Image is the name of the image, and the intent's key.
	Image string `json:"-"`
	// Namespace, Claim and ClaimUID identify the claim.
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	ClaimUID  string `json:"claimUID"`
	// Volume is the future name of the PersistentVolume.
	Volume string `json:"volume"`
	// SizeBytes and DataPool are those of the image.
	SizeBytes int64  `json:"sizeBytes"`
	DataPool  string `json:"dataPool,omitempty"`
	// SourceID and SourceVolume are, for a clone, the ID of its source image, which may
	// have a snapshot for it, and the volume of that image.
	SourceID     string `json:"sourceID,omitempty"`
	SourceVolume string `json:"sourceVolume,omitempty"`
	// SourceFSType and SourceBytes are that volume's file system and capacity.
	SourceFSType string `json:"sourceFSType,omitempty"`
	SourceBytes  int64  `json:"sourceBytes,omitempty"`
}

func (in Intent) key() string { return in.Image }

// parseIntent reads the intent for an image, and reports whether it is complete.
func parseIntent(image string, text []byte) (in Intent, ok bool) {
	in.Image = image
	err := json.Unmarshal(text, &in)
	return in, err == nil && in.Namespace != "" && in.Claim != "" && in.ClaimUID != "" && in.Volume != ""
}
